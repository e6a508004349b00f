// The convolution as written: output channels are lanes, a tile of positions times channel vectors stays in registers.
//
// x is read one element at a time through a table of tap offsets, so every stride, dilation and memory format is one loop.
// A 2x2 window (stride 2) is pooled in registers; other windows through a band of the conv output that stays in cache.
#pragma once

#include "input.h"
#include "pool.h"

namespace {

// Sums in registers: at least 8 hide a latency of 4 cycles at 2 multiply-adds a cycle; more than 16 (8) would leave too few
// registers for weights and too few general ones for the positions' pointers.
constexpr int TILE_SUMS = REGISTERS == 32 ? 16 : 8;

struct DirectPlan {
    const Problem& p;
    const float* weights;  // [group][block of CHANNEL_VECTORS vectors][tap][lane], zeros beyond the last channel
    const float* bias;     // [group][channels rounded up to vectors]
    int64_t padded_channels() const { return round_up(p.out_channels, L); }
};

// Weights of one group and block for one tap after the other; the last block of a group may be one vector.
inline void pack_direct_weights(const Problem& p, const float* w, float* packed) {
    const int64_t channels = round_up(p.out_channels, L), taps = p.reduction();
#pragma omp parallel for schedule(static) num_threads((int)p.threads) if (p.threads > 1)
    for (int64_t each = 0; each < p.groups * channels; each++) {
        const int64_t g = each / channels, c = each % channels;
        const int64_t block = c / (CHANNEL_VECTORS * L) * (CHANNEL_VECTORS * L);
        const int64_t width = std::min<int64_t>(CHANNEL_VECTORS * L, channels - block);
        float* to = packed + (g * channels + block) * taps + (c - block);
        const float* from = w + (g * p.out_channels + c) * p.w_stride[BATCH];
        for (int64_t kh = 0; kh < p.kernel[ROW]; kh++)
            for (int64_t kw = 0; kw < p.kernel[COLUMN]; kw++)
                for (int64_t ci = 0; ci < p.in_channels; ci++, to += width)
                    *to = c < p.out_channels
                              ? from[ci * p.w_stride[CHANNEL] + kh * p.w_stride[HEIGHT] + kw * p.w_stride[WIDTH]]
                              : 0.f;
    }
}

inline void pack_bias(const Problem& p, const float* bias, float* packed) {
    const int64_t channels = round_up(p.out_channels, L);
    for (int64_t g = 0; g < p.groups; g++)
        for (int64_t c = 0; c < channels; c++)
            packed[g * channels + c] = bias && c < p.out_channels ? bias[g * p.out_channels + c] : 0.f;
}

// sums[t] = bias + sum over taps of weights[tap] * at[t][offset of tap].  [POSITIONS, VECTORS * L]
template <int POSITIONS, int VECTORS>
INLINE void convolve(const float* const (&at)[POSITIONS], const int64_t* offsets, int64_t taps, const float* weights,
                     const float* bias, Vec (&sums)[POSITIONS][VECTORS]) {
    UNROLL for (int t = 0; t < POSITIONS; t++)
        UNROLL for (int v = 0; v < VECTORS; v++) sums[t][v] = Vec{};
    for (int64_t tap = 0; tap < taps; tap++, weights += VECTORS * L) {
        const int64_t offset = offsets[tap];
        Vec w[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) w[v] = load(weights + v * L);
        UNROLL for (int t = 0; t < POSITIONS; t++) {
            const float x = at[t][offset];
            UNROLL for (int v = 0; v < VECTORS; v++) sums[t][v] += w[v] * x;
        }
    }
    UNROLL for (int t = 0; t < POSITIONS; t++)  // last: a sum that begins with the bias rounds more
        UNROLL for (int v = 0; v < VECTORS; v++) sums[t][v] += load(bias + v * L);
}

// One group of one image: what the tiles of a band need.
struct DirectBand {
    const DirectPlan& plan;
    const Input& in;
    const int64_t* offsets;  // of each tap in `in`
    const OutputBand& out;
    int64_t group;
    Range rows;  // pooled

    const float* position(int64_t row, int64_t column) const {  // first element that a conv position reads
        const Problem& p = plan.p;
        return in.at(0, row * p.stride[ROW] - p.padding[ROW], column * p.stride[COLUMN] - p.padding[COLUMN]);
    }
    const float* weights(int64_t channel) const {
        return plan.weights + (group * plan.padded_channels() + channel) * plan.p.reduction();
    }
    const float* bias(int64_t channel) const { return plan.bias + group * plan.padded_channels() + channel; }
};

// WINDOWS neighbouring 2x2 windows, pooled in registers.
template <int WINDOWS, int VECTORS>
INLINE void pooled_tile(const DirectBand& band, int64_t row, int64_t column, int64_t channel) {
    const Problem& p = band.plan.p;
    const float* at[4 * WINDOWS];
    const float* first = band.position(2 * row, 2 * column);
    const int64_t down = p.stride[ROW] * band.in.row, right = p.stride[COLUMN] * band.in.column;
    UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2 * WINDOWS; j++) at[2 * WINDOWS * i + j] = first + i * down + j * right;
    Vec sums[4 * WINDOWS][VECTORS];
    convolve(at, band.offsets, p.reduction(), band.weights(channel), band.bias(channel), sums);
    const int64_t window = (row - band.rows.begin) * p.pooled_size[COLUMN] + column;
    UNROLL for (int j = 0; j < WINDOWS; j++) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            Vec best = sums[2 * j][v];
            IVec winner = {};
            UNROLL for (int offset = 1; offset < 4; offset++) {
                const Vec value = sums[offset / 2 * 2 * WINDOWS + 2 * j + offset % 2][v];
                const Mask better = takes_maximum(value, best);
                best = select(better, value, best);
                winner = select(better, splat((int32_t)offset), winner);
            }
            const int64_t c = channel + v * L;
            write_window(band.out.y(window + j, c), band.out.code(window + j, c), best, winner, p.out_channels - c);
        }
    }
}

template <int VECTORS>
void pooled_rows(const DirectBand& band, int64_t channel) {
    constexpr int WINDOWS = TILE_SUMS / 4 / VECTORS > 3 ? 3 : TILE_SUMS / 4 / VECTORS;
    const int64_t width = band.plan.p.pooled_size[COLUMN];
    for (int64_t row = band.rows.begin; row < band.rows.end; row++) {
        int64_t column = 0;
        for (; column + WINDOWS <= width; column += WINDOWS) pooled_tile<WINDOWS, VECTORS>(band, row, column, channel);
        for (; column < width; column++) pooled_tile<1, VECTORS>(band, row, column, channel);
    }
}

// The conv output of `conv` rows, all columns that windows see, L * VECTORS channels.  z: [row, column, VECTORS * L]
template <int VECTORS>
void convolve_rows(const DirectBand& band, Range conv, int64_t channel, float* z) {
    constexpr int POSITIONS = TILE_SUMS / VECTORS > 8 ? 8 : TILE_SUMS / VECTORS;
    const Problem& p = band.plan.p;
    const int64_t width = p.conv_size[COLUMN];
    const int64_t seen = conv_range(p, COLUMN, {0, p.pooled_size[COLUMN]}).end;  // others may read what `in` has not
    for (int64_t row = conv.begin; row < conv.end; row++) {
        for (int64_t column = 0; column < seen; column += POSITIONS) {
            const float* at[POSITIONS];
            UNROLL for (int t = 0; t < POSITIONS; t++) at[t] = band.position(row, std::min(column + t, seen - 1));
            Vec sums[POSITIONS][VECTORS];
            convolve(at, band.offsets, p.reduction(), band.weights(channel), band.bias(channel), sums);
            float* to = z + ((row - conv.begin) * width + column) * VECTORS * L;
            UNROLL for (int t = 0; t < POSITIONS; t++)
                if (column + t < seen)
                    UNROLL for (int v = 0; v < VECTORS; v++) store(to + (t * VECTORS + v) * L, sums[t][v]);
        }
    }
}

template <int VECTORS>
void direct_block(const DirectBand& band, int64_t channel, Scratch& z) {
    const Problem& p = band.plan.p;
    if (p.plain_pool()) return pooled_rows<VECTORS>(band, channel);
    const Range conv = conv_range(p, ROW, band.rows);
    float* rows = z.get<float>(std::max<int64_t>(conv.size(), 0) * p.conv_size[COLUMN] * VECTORS * L);
    convolve_rows<VECTORS>(band, conv, channel, rows);
    pool_rows<VECTORS>(p, {rows, conv.begin, VECTORS * L}, band.out, band.rows, channel);
}

inline Kernel forward_direct(const Problem& p, const float* x, const float* w, const float* bias, float* y, uint8_t* code) {
    static thread_local Scratch weight_memory, bias_memory;
    const int64_t channels = round_up(p.out_channels, L);
    float* weights = weight_memory.get<float>(p.groups * channels * p.reduction());
    float* padded_bias = bias_memory.get<float>(p.groups * channels);
    pack_direct_weights(p, w, weights);
    pack_bias(p, bias, padded_bias);
    const DirectPlan plan{p, weights, padded_bias};

    const int64_t copied = reads_padding(p) ? p.stride[ROW] * p.size[COLUMN] * p.in_channels : 0;
    const int64_t pooled = p.plain_pool() ? 0 : p.conv_size[COLUMN] * CHANNEL_VECTORS * L;
    const Bands bands(p, p.batch * p.groups, p.pool_stride[ROW] * (copied + pooled));
#pragma omp parallel for schedule(static) num_threads((int)p.threads) if (p.threads > 1)
    for (int64_t unit = 0; unit < p.batch * p.groups * bands.count; unit++) {
        static thread_local Scratch copy, tile, z, offset_memory;
        const int64_t image = unit / bands.count / p.groups, group = unit / bands.count % p.groups;
        const Range rows = bands.rows(unit % bands.count);
        const Input in = padded_input(p, group_of(p, x, image, group), conv_range(p, ROW, rows), copy);
        const OutputBand out(p, y, code, image, group, rows, tile);
        int64_t* offsets = offset_memory.get<int64_t>(p.reduction());
        tap_offsets(p, in, offsets);
        const DirectBand band{plan, in, offsets, out, group, rows};
        for (int64_t c = 0; c < channels; c += CHANNEL_VECTORS * L)
            channels - c > L ? direct_block<2>(band, c, z) : direct_block<1>(band, c, z);
        out.finish();
    }
    return Kernel::forward_direct;
}

}  // namespace
