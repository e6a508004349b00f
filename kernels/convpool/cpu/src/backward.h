// dw, db and dx from the winners alone. Images are split into a number of chunks that depends on the shapes and nothing
// else; each chunk sums dw and db in its own memory, and the chunks are added in order: the thread count changes no bit.
#pragma once

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
            UNROLL for (int r = 0; r < RUNS; r++)
                UNROLL for (int v = 0; v < VECTORS; v++) sums[k][r][v] += load(patch + runs[r] + v * L) * g;
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

// For each bucket, patch += sum of gradients * weights.  weights: [channel][RUNS, VECTORS * L]; `used`: floats of a run.
template <int RUNS, int VECTORS>
void add_buckets(float* dx, const int64_t* runs, const Buckets& buckets, const float* weights, int64_t used) {
    const Mask tail = first_lanes((int)(used - (VECTORS - 1) * L));
    int64_t i = 0;
    for (int64_t b = 0; b < buckets.count; b++) {
        Vec sums[RUNS][VECTORS] = {};
        for (; i < buckets.ends[b]; i++) {
            const float* w = weights + buckets.channels[i] * (RUNS * VECTORS * L);
            const float g = buckets.gradients[i];
            UNROLL for (int r = 0; r < RUNS; r++)
                UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] += load(w + (r * VECTORS + v) * L) * g;
        }
        float* patch = dx + buckets.offsets[b];
        UNROLL for (int r = 0; r < RUNS; r++) {
            UNROLL for (int v = 0; v < VECTORS; v++) {
                float* to = patch + runs[r] + v * L;
                // Beyond a run lie a neighbour's pixels: 0 * infinity must not reach them.
                store(to, load(to) + (v == VECTORS - 1 ? select(tail, sums[r][v], Vec{}) : sums[r][v]));
            }
        }
    }
}

using AddPatches = decltype(&add_patches<1, 1>);
using AddBuckets = decltype(&add_buckets<1, 1>);

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
template <int... I>
AddBuckets bucket_kernel(const Tile& tile, std::integer_sequence<int, I...>) {
    static constexpr AddBuckets KERNELS[] = {[] {
        constexpr int RUNS = I / MOST_VECTORS + 1, VECTORS = I % MOST_VECTORS + 1;
        if constexpr (RUNS * VECTORS <= DX_REGISTERS || VECTORS == 1) return add_buckets<RUNS, VECTORS>;
        else return (AddBuckets) nullptr;
    }()...};
    return KERNELS[(tile.runs - 1) * MOST_VECTORS + tile.vectors - 1];
}
using TileSizes = std::make_integer_sequence<int, MOST_RUNS * MOST_VECTORS>;

// For each float of a tiled patch, the offset of its element in a weight of these strides; -1 where a vector's end is unused.
inline void element_offsets(const Problem& p, const PatchLayout& layout, const Tiling& tiling, const int64_t (&stride)[4],
                            int64_t* offsets) {
    for (int64_t t = 0; t < tiling.count(); t++) {
        const Tile tile = tiling[t];
        for (int64_t r = tile.run; r < tile.run + tile.runs; r++) {
            for (int64_t q = tile.vector * L; q < (tile.vector + tile.vectors) * L; q++) {
                const int64_t tap = r * layout.taps_in_run + q / layout.pixel, channel = q % layout.pixel;
                const bool exists = q < layout.length() && channel < p.in_channels;
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
    Tiling tiling;
    int64_t* elements;   // element_offsets of dw, or of weight
    int64_t* run_offset;  // of each run of a patch

    Side(const Problem& p, const PatchLayout& of, int64_t registers, const int64_t (&weight_stride)[4], Scratch& memory)
        : layout(of), tiling(layout, registers) {
        elements = memory.get<int64_t>(tiling.size() + layout.runs);
        run_offset = elements + tiling.size();
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
    const float* dx_weights;  // [group][tile][out channel][tile's floats]
    float* partial;           // [chunk][group]{[tile][out channel][tile's floats], db}
    int64_t chunks, height, block;

    int64_t partial_size() const { return p.out_channels * (dw ? x_side->tiling.size() : 0) + round_up(p.out_channels, L); }
    float* sums(int64_t chunk, int64_t group) const { return partial + (chunk * p.groups + group) * partial_size(); }
    float* db_sums(int64_t chunk, int64_t group) const { return sums(chunk, group) + partial_size() - round_up(p.out_channels, L); }
    Range images(int64_t chunk) const { return {chunk * p.batch / chunks, (chunk + 1) * p.batch / chunks}; }
};

inline void weight_gradient(const Backward& b, const float* patches, const ChannelLists& lists, float* sums) {
    const Side& side = *b.x_side;
    for (int64_t t = 0; t < side.tiling.count(); t++) {
        const Tile tile = side.tiling[t];
        const AddPatches add = patch_kernel(tile, TileSizes());
        for (int64_t c = 0; c < b.p.out_channels; c++, sums += tile.size())
            add(patches + tile.vector * L, side.run_offset + tile.run, lists.offsets + c * lists.room, lists.gradients + c * lists.room,
                lists.counts[c], sums);
    }
}

inline void input_gradient(const Backward& b, int64_t group, const Buckets& buckets, float* patches) {
    const Side& side = *b.dx_side;
    const float* weights = b.dx_weights + group * b.p.out_channels * side.tiling.size();
    for (int64_t t = 0; t < side.tiling.count(); t++) {
        const Tile tile = side.tiling[t];
        bucket_kernel(tile, TileSizes())(patches + tile.vector * L, side.run_offset + tile.run, buckets, weights,
                                         side.layout.length() - tile.vector * L);
        weights += b.p.out_channels * tile.size();
    }
}

inline void backward_image(const Backward& b, int64_t chunk, int64_t image, int64_t group) {
    static thread_local Scratch pixels, unfolded, rows, offsets, dx_offsets, planes, windows, lists_memory, buckets_memory;
    const Problem& p = b.p;
    const float* x = b.x ? group_of(p, b.x, image, group) : nullptr;
    float* dx = b.dx ? b.dx + image * p.dx_stride[BATCH] + group * p.in_channels * p.dx_stride[CHANNEL] : nullptr;
    std::optional<GradientRows> gradient;
    if (dx) gradient.emplace(p, b.dx_side->layout, dx, b.height, rows);

    for (int64_t first = 0; first < p.pooled_size[ROW]; first += b.height) {
        const Band band(p, {first, std::min(first + b.height, p.pooled_size[ROW])});
        const int64_t count = band.rows.size() * p.pooled_size[COLUMN];
        if (b.dw || b.db) {
            const PatchLayout none{};
            const PatchLayout& layout = b.dw ? b.x_side->layout : none;
            const float* patches = b.dw ? patches_of(p, layout, x, band, pixels, unfolded) : nullptr;
            const Pooled pooled = pooled_band(p, b.dy, b.code, image, group, band.rows, false, planes);
            const Offsets where(p, layout, band, offsets);
            ChannelLists lists(p, b.block, lists_memory);
            for (int64_t begin = 0; begin < count; begin += b.block) {
                lists.fill(p, pooled, where, {begin, std::min(begin + b.block, count)}, b.db_sums(chunk, group));
                if (b.dw) weight_gradient(b, patches, lists, b.sums(chunk, group));
            }
        }
        if (dx) {
            float* patches = gradient->open(band);
            const Pooled pooled = pooled_band(p, b.dy, b.code, image, group, band.rows, true, windows);
            const Offsets where(p, b.dx_side->layout, band, dx_offsets);
            Buckets buckets(p, b.block, buckets_memory);
            for (int64_t begin = 0; begin < count; begin += b.block) {
                buckets.fill(p, pooled, where, {begin, std::min(begin + b.block, count)});
                input_gradient(b, group, buckets, patches);
            }
            const bool last = band.rows.end == p.pooled_size[ROW];
            gradient->write(last ? p.size[ROW] : Band(p, {band.rows.end, band.rows.end + 1}).input[ROW].begin);
        }
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
    const int64_t* element = b.x_side->elements;
    int64_t begin = 0;
    for (int64_t t = 0; t < b.x_side->tiling.count(); t++) {
        const int64_t size = b.x_side->tiling[t].size();
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
    for (int64_t group = 0; group < p.groups; group++) {
        const int64_t* tile_elements = b.dx_side->elements;
        for (int64_t t = 0; t < b.dx_side->tiling.count(); t++) {
            const int64_t size = b.dx_side->tiling[t].size();
            for (int64_t c = 0; c < p.out_channels; c++, packed += size) {
                const float* from = b.w + (group * p.out_channels + c) * p.w_stride[BATCH];
                for (int64_t q = 0; q < size; q++) packed[q] = tile_elements[q] >= 0 ? from[tile_elements[q]] : 0.f;
            }
            tile_elements += size;
        }
    }
}

// How many windows a block may have for its patches to stay in the first-level cache (48 KB on the machine that it was tuned on).
inline int64_t block_windows(const Problem& p, const PatchLayout& layout, int64_t rows) {
    constexpr int64_t CACHE_FLOATS = 28 << 8;
    int64_t columns = p.pooled_size[COLUMN];
    while (span(p, layout, rows, columns) > CACHE_FLOATS && rows > 1) rows = (rows + 1) / 2;
    while (span(p, layout, rows, columns) > CACHE_FLOATS && columns > 4) columns = (columns + 1) / 2;
    return rows * columns;
}

// Pooled rows of a band: copies of x and dx of 256 KB each stay in the second-level cache.
inline int64_t band_height(const Problem& p, const PatchLayout& layout) {
    constexpr int64_t CACHE_FLOATS = 64 << 10;
    int64_t rows = p.pooled_size[ROW];
    if (layout.form == Form::IN_PLACE) return rows;
    while (span(p, layout, rows, p.pooled_size[COLUMN]) > CACHE_FLOATS && rows > 1) rows = (rows + 1) / 2;
    return rows;
}

inline void backward(const Problem& p, const float* x, const float* w, const float* dy, const uint8_t* code, float* dx, float* dw,
                     float* db) {
    static thread_local Scratch x_memory, dx_memory, weight_memory, partial_memory;
    Backward b{p, x, w, dy, code, dx, dw, db, nullptr, nullptr, nullptr, nullptr, 1, p.pooled_size[ROW], p.pooled()};
    std::optional<Side> x_side, dx_side;
    if (dw) {
        b.x_side = &x_side.emplace(p, x_layout(p), DW_REGISTERS, p.dw_stride, x_memory);
        b.height = std::min(b.height, band_height(p, x_side->layout));
    }
    if (dx) {
        // A tile's weights, read in no order, should leave room for patches in the first-level cache: 40 of 48 KB.
        const int64_t registers = std::clamp<int64_t>((40 << 10) / (p.out_channels * L * 4), 4, DX_REGISTERS);
        b.dx_side = &dx_side.emplace(p, dx_layout(p), registers, p.w_stride, dx_memory);
        b.height = std::min(b.height, band_height(p, dx_side->layout));
        float* weights = weight_memory.get<float>(p.groups * p.out_channels * dx_side->tiling.size());
        b.dx_weights = weights;
        pack_dx_weights(b, weights);
    }
    for (const Side* side : {b.x_side, b.dx_side})
        if (side) b.block = std::min(b.block, block_windows(p, side->layout, b.height));

    // 8 to 32 chunks as 1 MB of sums allows: clearing and adding more of them showed in the time of small layers.
    const int64_t floats = p.groups * b.partial_size();
    b.chunks = std::min(p.batch, std::clamp<int64_t>((256 << 10) / floats, 8, 32));
    b.partial = partial_memory.get<float>(b.chunks * floats);
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < b.chunks; chunk++) {
            std::fill_n(b.sums(chunk, 0), floats, 0.f);
            const Range images = b.images(chunk);
            for (int64_t image = images.begin; image < images.end; image++)
                for (int64_t group = 0; group < p.groups; group++) backward_image(b, chunk, image, group);
        }
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < p.groups * p.out_channels; channel++)
            reduce(b, channel / p.out_channels, channel % p.out_channels);
    }
}

}  // namespace
