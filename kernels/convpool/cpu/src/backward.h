// dw, db and dx from the winners alone. Images are split into a number of chunks that depends on the shapes and nothing
// else; each chunk sums dw and db in its own memory, and the chunks are added in order: the thread count changes no bit.
#pragma once

#include <atomic>
#include <optional>
#include <utility>

#include "winners.h"

namespace {

constexpr int MOST_RUNS = 7;      // of a tile of a patch held in registers
constexpr int MOST_VECTORS = 8;   // of each run
constexpr int DW_REGISTERS = REGISTERS - 4;
constexpr int DX_REGISTERS = 12;

// A part of a patch whose sums stay in registers: `runs` runs from `run`, `vectors` vectors of each from `vector`.
struct Tile {
    int64_t run, runs, vector, vectors;
    int64_t size() const { return runs * vectors * L; }  // floats
};

// The tiles of a patch, of nearly equal sizes.
class Tiling {
   public:
    Tiling(const PatchLayout& layout, int64_t most_registers) {
        const int64_t run_parts = (layout.runs - 1) / MOST_RUNS + 1;
        const int64_t runs = (layout.runs - 1) / run_parts + 1;
        const int64_t most_vectors = std::max<int64_t>(1, std::min<int64_t>(MOST_VECTORS, most_registers / runs));
        const int64_t vector_parts = (layout.run_vectors() - 1) / most_vectors + 1;
        layout_ = &layout, runs_ = runs, vectors_ = (layout.run_vectors() - 1) / vector_parts + 1;
        run_parts_ = (layout.runs - 1) / runs_ + 1, vector_parts_ = (layout.run_vectors() - 1) / vectors_ + 1;
    }
    int64_t count() const { return run_parts_ * vector_parts_; }
    Tile operator[](int64_t i) const {
        const int64_t run = i / vector_parts_ * runs_, vector = i % vector_parts_ * vectors_;
        return {run, std::min(runs_, layout_->runs - run), vector, std::min(vectors_, layout_->run_vectors() - vector)};
    }
    // Floats of a patch before tile i, and in all of it.
    int64_t begin(int64_t i) const {
        int64_t floats = 0;
        for (int64_t t = 0; t < i; t++) floats += (*this)[t].size();
        return floats;
    }
    int64_t size() const { return begin(count()); }

   private:
    const PatchLayout* layout_;
    int64_t runs_, vectors_, run_parts_, vector_parts_;
};

// total += sum of gradients[i] * patch at offsets[i].  [RUNS, VECTORS * L]
template <int RUNS, int VECTORS>
void add_patches(const float* x, const int64_t* runs, const int32_t* offsets, const float* gradients, int64_t count, float* total) {
    constexpr int CHAINS = RUNS * VECTORS >= 8 ? 1 : 8 / (RUNS * VECTORS);  // 8 independent sums hide the latency
    Vec sums[CHAINS][RUNS][VECTORS] = {};
    int64_t i = 0;
    for (; i + CHAINS <= count; i += CHAINS) {
        UNROLL for (int k = 0; k < CHAINS; k++) {
            const float* patch = x + offsets[i + k];
            const float g = gradients[i + k];
            UNROLL for (int r = 0; r < RUNS; r++) {
                const float* run = settled(patch + runs[r]);
                UNROLL for (int v = 0; v < VECTORS; v++) sums[k][r][v] += load(run + v * L) * g;
            }
        }
    }
    for (; i < count; i++) {
        const float* patch = x + offsets[i];
        UNROLL for (int r = 0; r < RUNS; r++)
            UNROLL for (int v = 0; v < VECTORS; v++) sums[0][r][v] += load(patch + runs[r] + v * L) * gradients[i];
    }
    UNROLL for (int r = 0; r < RUNS; r++) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            UNROLL for (int k = 1; k < CHAINS; k++) sums[0][r][v] += sums[k][r][v];
            float* to = total + (r * VECTORS + v) * L;
            store(to, load(to) + sums[0][r][v]);
        }
    }
}

// Windows and the channels that won their positions, as add_winners reads them.
struct Winners {
    int64_t windows, positions;
    const int32_t *window_offsets, *position_offsets;
    const uint64_t* bits;  // [window][position]
    const float* dy;
    int64_t dy_window, dy_channel;  // steps
    Ahead* ahead;
};

// For each window and position, patch += sum over the channels that won there of dy * weights.
// weights: [channel][RUNS, VECTORS * L]; `used`: floats of a run.
template <int RUNS, int VECTORS>
void add_winners(float* dx, const int64_t* runs, const Winners& winners, const float* weights, int64_t used) {
    const Mask tail = first_lanes((int)(used - (VECTORS - 1) * L));
    const uint64_t* bits = winners.bits;
    for (int64_t window = 0; window < winners.windows; window++) {
        const float* dy = winners.dy + window * winners.dy_window;
        winners.ahead->fetch();
        for (int64_t position = 0; position < winners.positions; position++) {
            uint64_t left = *bits++;
            if (!left) continue;
            Vec sums[RUNS][VECTORS] = {};
            for (; left; left &= left - 1) {
                const int64_t channel = __builtin_ctzll(left);
                const float* w = settled(weights + channel * (RUNS * VECTORS * L));
                const float g = dy[channel * winners.dy_channel];
                UNROLL for (int r = 0; r < RUNS; r++)
                    UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] += load(w + (r * VECTORS + v) * L) * g;
            }
            float* patch = dx + winners.window_offsets[window] + winners.position_offsets[position];
            UNROLL for (int r = 0; r < RUNS; r++) {
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    float* to = patch + runs[r] + v * L;
                    // Beyond a run lie a neighbour's pixels: 0 * infinity must not reach them.
                    store(to, load(to) + (v == VECTORS - 1 ? select(tail, sums[r][v], Vec{}) : sums[r][v]));
                }
            }
        }
    }
}

// patch += sum of dy * weights over the channels of `won`.
template <int RUNS, int VECTORS, int ROW_SHIFT, int COLUMN_SHIFT, int ROWS, int COLUMNS>
INLINE void add_channels(uint64_t won, const float* dy, int64_t dy_channel, const float* weights, Vec (&patch)[ROWS][COLUMNS]) {
    for (; won; won &= won - 1) {
        const int64_t channel = __builtin_ctzll(won);
        const float* w = settled(weights + channel * (RUNS * VECTORS * L));
        const float g = dy[channel * dy_channel];
        UNROLL for (int r = 0; r < RUNS; r++)
            UNROLL for (int v = 0; v < VECTORS; v++) patch[r + ROW_SHIFT][v + COLUMN_SHIFT] += load(w + (r * VECTORS + v) * L) * g;
    }
}

// How the positions of a window lie in dx: what they share is summed in registers before it is added.
enum class Positions {
    ANYHOW,
    RUN_APART,             // in 2x2 windows, the rows are a run apart
    RUN_AND_VECTOR_APART,  // and the columns a vector
};

inline Positions positions_of(const Problem& p, const PatchLayout& layout) {
    const bool run_apart = p.plain_pool() && layout.row == layout.line && layout.runs == p.kernel[ROW] && p.dilation[ROW] == 1;
    if (!run_apart) return Positions::ANYHOW;
    return layout.column == L && layout.pixel == L ? Positions::RUN_AND_VECTOR_APART : Positions::RUN_APART;
}

// add_winners for RUN_AND_VECTOR_APART: all that a window reads stays in registers.
template <int RUNS, int VECTORS>
void add_window_winners(float* dx, const int64_t* runs, const Winners& winners, const float* weights, int64_t) {
    const int64_t line = winners.position_offsets[2];
    const uint64_t* bits = winners.bits;
    const float* dy = winners.dy;
    for (int64_t window = 0; window < winners.windows; window++, bits += 4, dy += winners.dy_window) {
        winners.ahead->fetch();
        if (!(bits[0] | bits[1] | bits[2] | bits[3])) continue;
        Vec sums[RUNS + 1][VECTORS + 1] = {};
        add_channels<RUNS, VECTORS, 0, 0>(bits[0], dy, winners.dy_channel, weights, sums);
        add_channels<RUNS, VECTORS, 0, 1>(bits[1], dy, winners.dy_channel, weights, sums);
        add_channels<RUNS, VECTORS, 1, 0>(bits[2], dy, winners.dy_channel, weights, sums);
        add_channels<RUNS, VECTORS, 1, 1>(bits[3], dy, winners.dy_channel, weights, sums);
        float* patch = dx + winners.window_offsets[window] + runs[0];
        UNROLL for (int r = 0; r <= RUNS; r++, patch += line)
            UNROLL for (int v = 0; v <= VECTORS; v++) store(patch + v * L, load(patch + v * L) + sums[r][v]);
    }
}

// add_winners for RUN_APART: what a column of a window's positions reads stays in registers.
template <int RUNS, int VECTORS>
void add_column_winners(float* dx, const int64_t* runs, const Winners& winners, const float* weights, int64_t used) {
    const Mask tail = first_lanes((int)(used - (VECTORS - 1) * L));
    const int64_t line = winners.position_offsets[2];
    const uint64_t* bits = winners.bits;
    const float* dy = winners.dy;
    for (int64_t window = 0; window < winners.windows; window++, bits += 4, dy += winners.dy_window) {
        winners.ahead->fetch();
        for (int column = 0; column < 2; column++) {
            if (!(bits[column] | bits[2 + column])) continue;
            Vec sums[RUNS + 1][VECTORS] = {};
            add_channels<RUNS, VECTORS, 0, 0>(bits[column], dy, winners.dy_channel, weights, sums);
            add_channels<RUNS, VECTORS, 1, 0>(bits[2 + column], dy, winners.dy_channel, weights, sums);
            float* patch = dx + winners.window_offsets[window] + winners.position_offsets[column] + runs[0];
            UNROLL for (int r = 0; r <= RUNS; r++, patch += line) {
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    const Vec sum = v == VECTORS - 1 ? select(tail, sums[r][v], Vec{}) : sums[r][v];
                    store(patch + v * L, load(patch + v * L) + sum);
                }
            }
        }
    }
}

using AddPatches = decltype(&add_patches<1, 1>);
using AddWinners = decltype(&add_winners<1, 1>);

// The kernel for a tile's size: one entry for each number of runs and vectors that a Tiling can ask for.
template <int... I>
AddPatches patch_kernel(const Tile& tile, std::integer_sequence<int, I...>) {
    static constexpr AddPatches KERNELS[] = {[] {
        constexpr int RUNS = I / MOST_VECTORS + 1, VECTORS = I % MOST_VECTORS + 1;
        if constexpr (RUNS * VECTORS <= DW_REGISTERS || VECTORS == 1) return add_patches<RUNS, VECTORS>;
        else return (AddPatches) nullptr;
    }()...};
    return KERNELS[(tile.runs - 1) * MOST_VECTORS + tile.vectors - 1];
}

template <Positions POSITIONS, int RUNS, int VECTORS>
constexpr AddWinners winner_kernel() {
    constexpr int MOST = REGISTERS - 4;
    if constexpr (POSITIONS == Positions::RUN_AND_VECTOR_APART && (RUNS + 1) * (VECTORS + 1) <= MOST)
        return add_window_winners<RUNS, VECTORS>;
    else if constexpr (POSITIONS != Positions::ANYHOW && (RUNS + 1) * VECTORS <= MOST) return add_column_winners<RUNS, VECTORS>;
    else if constexpr (RUNS * VECTORS <= DX_REGISTERS || VECTORS == 1) return add_winners<RUNS, VECTORS>;
    else return nullptr;
}
template <int... I>
AddWinners winner_kernel(const Tile& tile, Positions positions, std::integer_sequence<int, I...>) {
    static constexpr AddWinners KERNELS[][sizeof...(I)] = {
        {winner_kernel<Positions::ANYHOW, I / MOST_VECTORS + 1, I % MOST_VECTORS + 1>()...},
        {winner_kernel<Positions::RUN_APART, I / MOST_VECTORS + 1, I % MOST_VECTORS + 1>()...},
        {winner_kernel<Positions::RUN_AND_VECTOR_APART, I / MOST_VECTORS + 1, I % MOST_VECTORS + 1>()...},
    };
    return KERNELS[(int)positions][(tile.runs - 1) * MOST_VECTORS + tile.vectors - 1];
}
using TileSizes = std::make_integer_sequence<int, MOST_RUNS * MOST_VECTORS>;

// For each float of the tiled patches of all slabs, the offset of its element in a weight of these strides; -1 where a
// vector's end is unused.
inline void element_offsets(const Problem& p, const PatchLayout& layout, const Tiling& tiling, const int64_t (&stride)[4],
                            int64_t* offsets) {
    for (int64_t i = 0; i < layout.slabs(p) * tiling.count(); i++) {
        const Tile tile = tiling[i % tiling.count()];
        const int64_t first = i / tiling.count() * layout.channels;
        for (int64_t r = tile.run; r < tile.run + tile.runs; r++) {
            for (int64_t q = tile.vector * L; q < (tile.vector + tile.vectors) * L; q++) {
                const int64_t tap = r * layout.taps_in_run + q / layout.pixel, channel = first + q % layout.pixel;
                const bool exists = q < layout.length() && q % layout.pixel < layout.channels && channel < p.in_channels;
                *offsets++ = exists ? channel * stride[CHANNEL] + tap / p.kernel[COLUMN] * stride[HEIGHT] +
                                          tap % p.kernel[COLUMN] * stride[WIDTH]
                                    : -1;
            }
        }
    }
}

// One of x and dx: how its patches lie, how they are cut, and where the matching weights stand.
struct Side {
    PatchLayout layout;
    Tiling tiling;  // of one slab
    int64_t slabs, size;  // size: floats of the patches of all slabs
    int64_t* elements;    // element_offsets of dw, or of weight
    int64_t* run_offset;  // of each run of a patch

    Side(const Problem& p, const PatchLayout& of, int64_t registers, const int64_t (&weight_stride)[4], Scratch& memory)
        : layout(of), tiling(layout, registers), slabs(layout.slabs(p)), size(slabs * tiling.size()) {
        elements = memory.get<int64_t>(size + layout.runs);
        run_offset = elements + size;
        element_offsets(p, layout, tiling, weight_stride, elements);
        for (int64_t r = 0; r < layout.runs; r++) run_offset[r] = layout.run_offset(p, r);
    }
    Side(const Side&) = delete;
};

struct Backward {
    const Problem& p;
    const float *x, *w, *dy;
    const uint8_t* code;
    float *dx, *dw, *db;  // null where not asked for
    const Side *x_side, *dx_side;
    const float* dx_weights;  // [group][slab][tile][out channel][tile's floats]
    float* partial;           // [chunk][group]{[slab][tile][out channel][tile's floats], db}
    int64_t chunks;
    int64_t images, height;  // of a band at most
    int64_t block;           // windows whose lists are made at once

    int64_t partial_size() const { return p.out_channels * (dw ? x_side->size : 0) + round_up(p.out_channels, L); }
    float* sums(int64_t chunk, int64_t group) const { return partial + (chunk * p.groups + group) * partial_size(); }
    float* db_sums(int64_t chunk, int64_t group) const { return sums(chunk, group) + partial_size() - round_up(p.out_channels, L); }
};

inline void weight_gradient(const Backward& b, const Patches& patches, const ChannelLists& lists, float* sums, Ahead& ahead) {
    const Side& side = *b.x_side;
    for (int64_t slab = 0; slab < side.slabs; slab++) {
        for (int64_t t = 0; t < side.tiling.count(); t++) {
            const Tile tile = side.tiling[t];
            const AddPatches add = patch_kernel(tile, TileSizes());
            const float* x = patches.data + slab * patches.slab + tile.vector * L;
            for (int64_t c = 0; c < b.p.out_channels; c++, sums += tile.size()) {
                ahead.fetch();
                add(x, side.run_offset + tile.run, lists.offsets + c * lists.room, lists.gradients + c * lists.room,
                    lists.counts[c], sums);
            }
        }
    }
}

// dw and db of some pooled rows of one group of images.
inline void add_weight_gradient(const Backward& b, int64_t chunk, Range images, int64_t group, const Band& band) {
    static thread_local Scratch pixels, unfolded, offsets, planes, lists_memory;
    const Problem& p = b.p;
    const int64_t windows = band.rows.size() * p.pooled_size[COLUMN];
    const PatchLayout none{};
    const PatchLayout& layout = b.dw ? b.x_side->layout : none;
    Patches patches{};
    if (b.dw) patches = patches_of(p, layout, group_of(p, b.x, images.begin, group), images.size(), band, pixels, unfolded);
    const Offsets where(p, layout, band, offsets);
    ChannelLists lists(p, std::max(b.block, windows), lists_memory);
    std::optional<Ahead> ahead;
    if (b.dw) {
        const int64_t calls = b.x_side->slabs * b.x_side->tiling.count() * p.out_channels;
        const int64_t blocks = images.size() * windows / b.block + 1;
        ahead = next_images(p, b.x, images, band, calls * blocks);
    }
    int64_t listed = 0;
    for (int64_t image = images.begin; image < images.end; image++) {
        const Pooled pooled = pooled_band(p, b.dy, b.code, image, group, band.rows, false, planes);
        for (int64_t begin = 0; begin < windows; begin += b.block) {
            const Range block = {begin, std::min(begin + b.block, windows)};
            lists.append(p, pooled, where, block, (int32_t)((image - images.begin) * patches.image), b.db_sums(chunk, group));
            listed += block.size();
            const bool last = image + 1 == images.end && block.end == windows;
            if (!last && listed + std::min(b.block, windows) <= b.block) continue;
            if (b.dw) weight_gradient(b, patches, lists, b.sums(chunk, group), *ahead);
            lists.clear(p);
            listed = 0;
        }
    }
}

// Adds the part of some pooled rows of one group of images to the rows of dx.
inline void add_input_gradient(const Backward& b, Range images, int64_t group, const Band& band, const GradientRows& rows) {
    static thread_local Scratch offsets, bits, copy;
    const Problem& p = b.p;
    const Side& side = *b.dx_side;
    const int64_t windows = band.rows.size() * p.pooled_size[COLUMN];
    const int64_t first =
        images.begin * p.y_stride[BATCH] + group * p.out_channels * p.y_stride[CHANNEL] + band.rows.begin * p.y_stride[HEIGHT];
    const Offsets where(p, side.layout, band, offsets);
    const WinnerBits won(p, b.code + first, images.size(), band.rows, bits, copy);
    const float* weights = b.dx_weights + group * p.out_channels * side.size;
    const Positions positions = positions_of(p, side.layout);
    // Where whole images go to dx at once, it is fetched before they do.
    const bool whole_images = band.rows.size() == p.pooled_size[ROW] && p.groups == 1;
    Ahead ahead(b.dx + images.begin * p.dx_stride[BATCH], whole_images ? images.size() * p.dx_stride[BATCH] : 0,
                side.slabs * side.tiling.count() * won.words * images.size() * windows);
    for (int64_t slab = 0; slab < side.slabs; slab++) {
        for (int64_t t = 0; t < side.tiling.count(); t++) {
            const Tile tile = side.tiling[t];
            const AddWinners add = winner_kernel(tile, positions, TileSizes());
            for (int64_t word = 0; word < won.words; word++) {
                for (int64_t image = 0; image < images.size(); image++) {
                    const Winners winners{windows, p.window(), where.windows(), where.codes(),
                                          won.bits + word * won.word + image * windows * p.window(),
                                          b.dy + first + image * p.y_stride[BATCH] + word * 64 * p.y_stride[CHANNEL],
                                          p.y_stride[WIDTH], p.y_stride[CHANNEL], &ahead};
                    add(rows.patches(slab, image) + tile.vector * L, side.run_offset + tile.run, winners,
                        weights + word * 64 * tile.size(), side.layout.length() - tile.vector * L);
                }
            }
            weights += p.out_channels * tile.size();
        }
    }
}

inline void backward_images(const Backward& b, int64_t chunk, Range images, int64_t group) {
    static thread_local Scratch rows;
    const Problem& p = b.p;
    std::optional<GradientRows> gradient;
    if (b.dx) {
        float* dx = b.dx + images.begin * p.dx_stride[BATCH] + group * p.in_channels * p.dx_stride[CHANNEL];
        gradient.emplace(p, b.dx_side->layout, dx, images.size(), b.height, rows);
    }
    for (int64_t first = 0; first < p.pooled_size[ROW]; first += b.height) {
        const Band band(p, {first, std::min(first + b.height, p.pooled_size[ROW])});
        if (b.dw || b.db) add_weight_gradient(b, chunk, images, group, band);
        if (!b.dx) continue;
        gradient->open(band);
        add_input_gradient(b, images, group, band, *gradient);
        const bool last = band.rows.end == p.pooled_size[ROW];
        gradient->write(last ? p.size[ROW] : Band(p, {band.rows.end, band.rows.end + 1}).input[ROW].begin);
    }
}

// Adds the chunks' sums in order.
inline void reduce(const Backward& b, int64_t group, int64_t channel) {
    const Problem& p = b.p;
    const int64_t out = group * p.out_channels + channel;
    if (b.db) {
        float total = 0;
        for (int64_t chunk = 0; chunk < b.chunks; chunk++) total += b.db_sums(chunk, group)[channel];
        b.db[out] = total;
    }
    if (!b.dw) return;
    const Side& side = *b.x_side;
    const int64_t* element = side.elements;
    int64_t begin = 0;
    for (int64_t i = 0; i < side.slabs * side.tiling.count(); i++) {
        const int64_t size = side.tiling[i % side.tiling.count()].size();
        for (int64_t q = 0; q < size; q += L, element += L) {
            Vec total = {};
            for (int64_t chunk = 0; chunk < b.chunks; chunk++) total += load(b.sums(chunk, group) + begin + channel * size + q);
            for (int lane = 0; lane < L; lane++)
                if (element[lane] >= 0) b.dw[out * p.dw_stride[BATCH] + element[lane]] = total[lane];
        }
        begin += p.out_channels * size;
    }
}

inline void pack_dx_weights(const Backward& b, float* packed) {
    const Problem& p = b.p;
    const Side& side = *b.dx_side;
    for (int64_t group = 0; group < p.groups; group++) {
        const int64_t* tile_elements = side.elements;
        for (int64_t i = 0; i < side.slabs * side.tiling.count(); i++) {
            const int64_t size = side.tiling[i % side.tiling.count()].size();
            for (int64_t c = 0; c < p.out_channels; c++, packed += size) {
                const float* from = b.w + (group * p.out_channels + c) * p.w_stride[BATCH];
                for (int64_t q = 0; q < size; q++) packed[q] = tile_elements[q] >= 0 ? from[tile_elements[q]] : 0.f;
            }
            tile_elements += size;
        }
    }
}

// Floats of patches: 44 of 48 KB where there is AVX-512 (with 32 channels, 28 KB were 3 % slower and 56 KB 10 %), 28 of the
// 32 KB that older processors have; and 256 KB.
constexpr int64_t FIRST_CACHE = (L == 16 ? 11 : 7) << 10, SECOND_CACHE = 64 << 10;

// How many windows a block may have for one slab of its patches to stay in the first-level cache.
inline int64_t block_windows(const Problem& p, const PatchLayout& layout, int64_t rows) {
    int64_t columns = p.pooled_size[COLUMN];
    const int64_t image = span(p, layout, rows, columns);
    if (rows == p.pooled_size[ROW] && image <= FIRST_CACHE) return FIRST_CACHE / image * rows * columns;
    while (span(p, layout, rows, columns) > FIRST_CACHE && rows > 1) rows = (rows + 1) / 2;
    while (span(p, layout, rows, columns) > FIRST_CACHE && columns > 4) columns = (columns + 1) / 2;
    return rows * columns;
}

inline int64_t band_floats(const Problem& p, const Side& side, int64_t rows) {
    return side.slabs * span(p, side.layout, rows, p.pooled_size[COLUMN]);
}

// Pooled rows of a band: copies of x and dx that stay in the second-level cache.
inline int64_t band_height(const Problem& p, const Side& side) {
    int64_t rows = p.pooled_size[ROW];
    while (band_floats(p, side, rows) > SECOND_CACHE && rows > 1) rows = (rows + 1) / 2;
    return rows;
}

// Nothing where a code was wrong: what it wrote is then not to be used.
inline std::optional<Kernel> backward(const Problem& p, const float* x, const float* w, const float* dy, const uint8_t* code, float* dx,
                                      float* dw, float* db) {
    static thread_local Scratch x_memory, dx_memory, weight_memory, partial_memory;
    Backward b{p, x, w, dy, code, dx, dw, db, nullptr, nullptr, nullptr, nullptr, 1, 1, p.pooled_size[ROW], p.pooled()};
    std::optional<Side> x_side, dx_side;
    if (dw) b.x_side = &x_side.emplace(p, x_layout(p), DW_REGISTERS, p.dw_stride, x_memory);
    if (dx) {
        // A tile's weights of 64 channels, read in no order, leave room for patches in the first-level cache: 40 of 48 KB.
        const int64_t registers = std::clamp<int64_t>((40 << 10) / (std::min<int64_t>(p.out_channels, 64) * L * 4), 4, DX_REGISTERS);
        b.dx_side = &dx_side.emplace(p, dx_layout(p), registers, p.w_stride, dx_memory);
        float* weights = weight_memory.get<float>(p.groups * p.out_channels * dx_side->size);
        b.dx_weights = weights;
        pack_dx_weights(b, weights);
    }
    for (const Side* side : {b.x_side, b.dx_side})
        if (side) b.height = std::min(b.height, band_height(p, *side));
    if (b.height == p.pooled_size[ROW]) {
        b.images = p.batch;
        for (const Side* side : {b.x_side, b.dx_side})
            if (side) b.images = std::min(b.images, SECOND_CACHE / band_floats(p, *side, b.height));
        b.images = std::max<int64_t>(b.images, 1);
    }
    if (dw) b.block = block_windows(p, b.x_side->layout, b.height);

    // 8 to 32 chunks as 1 MB of sums allows: clearing and adding more of them showed in the time of small layers. A multiple
    // of 8, so that 2, 4 or 8 threads get equally many.
    const int64_t floats = p.groups * b.partial_size();
    b.chunks = std::min(p.batch, std::clamp<int64_t>(round_up((256 << 10) / floats, 8), 8, 32));
    b.partial = partial_memory.get<float>(b.chunks * floats);
    std::atomic<bool> right{true};
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < b.chunks; chunk++) {
            std::fill_n(b.sums(chunk, 0), floats, 0.f);
            const Range images = part_of({0, p.batch}, chunk, b.chunks);
            if (!codes_are_right(p, code, images)) {
                right = false;
                continue;
            }
            const int64_t parts = (images.size() - 1) / b.images + 1;
            for (int64_t part = 0; part < parts; part++)
                for (int64_t group = 0; group < p.groups; group++) backward_images(b, chunk, part_of(images, part, parts), group);
        }
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < p.groups * p.out_channels; channel++)
            reduce(b, channel / p.out_channels, channel % p.out_channels);
    }
    if (!right) return std::nullopt;
    return Kernel::backward;
}

}  // namespace
