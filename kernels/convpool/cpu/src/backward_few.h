// dw and db of layers with few products a position, such as a network's first: lanes are output channels, all windows are
// visited, and each lane picks the x under its own winner. Listing the live ones would cost more than it saves here.
//
// The four values that a tap can meet in a 2x2 window stand side by side ("quads"), so that one broadcast load and one
// permutation within 128 bits, indexed by the code itself, give every lane its own.
#pragma once

#include "winners.h"

namespace {

constexpr int64_t FEW_PRODUCTS = 32;  // beyond, the lists of live positions are faster (measured at 27 and 50)

inline bool few_products(const Problem& p) {
    const bool known_kernel = p.kernel[ROW] == p.kernel[COLUMN] && (p.kernel[ROW] == 3 || p.kernel[ROW] == 5);
    return p.plain_pool() && known_kernel && p.reduction() <= FEW_PRODUCTS;
}

// The taps of a pass: as many kernel rows as registers hold sums for.
template <int KERNEL>
constexpr int ROWS_AT_ONCE = KERNEL * KERNEL <= REGISTERS - 6 ? KERNEL : (REGISTERS - 6) / KERNEL;

struct Quads {
    const float* data;
    int64_t width;  // quads in a row
};

// For each (row, column) from which a tap can start: x there, one conv column on, one conv row on, and both.
inline Quads make_quads(const Problem& p, const Band& band, const Input& in, int64_t channel, Scratch& memory) {
    const int64_t width = band.input[COLUMN].size() - p.stride[COLUMN], height = band.input[ROW].size() - p.stride[ROW];
    float* to = memory.get<float>(width * height * 4);
    const int64_t right = p.stride[COLUMN] * in.column, below = p.stride[ROW] * in.row;
    for (int64_t r = 0; r < height; r++) {
        const float* from = in.at(channel, band.input[ROW].begin + r, band.input[COLUMN].begin);
        float* quad = to + r * width * 4;
        if (right == 1) {
            for (int64_t k = 0; k < width; k++) {
                memcpy(quad + 4 * k, from + k, 8);
                memcpy(quad + 4 * k + 2, from + k + below, 8);
            }
        } else {
            for (int64_t k = 0; k < width; k++, from += in.column) {
                quad[4 * k] = from[0], quad[4 * k + 1] = from[right];
                quad[4 * k + 2] = from[below], quad[4 * k + 3] = from[below + right];
            }
        }
    }
    return {to, width};
}

// totals[row][column] += sum over a band's windows of dy * x under the winner, for kernel rows [first, first + ROWS).
template <int ROWS, int KERNEL>
void few_taps(const Problem& p, const Band& band, const Quads& quads, const Pooled& pooled, int64_t channel, int64_t first, float* totals) {
    const int lanes = (int)std::min<int64_t>(L, p.out_channels - channel);
    Vec sums[ROWS][KERNEL] = {};
    const float* dy = pooled.dy + channel;
    const uint8_t* code = pooled.code + channel;
    const int64_t row_step = 4 * p.dilation[ROW] * quads.width, column_step = 4 * p.dilation[COLUMN];
    for (int64_t i = 0; i < band.rows.size(); i++) {
        const float* quad = quads.data + (2 * i * p.stride[ROW] * quads.width) * 4 + first * row_step;
        for (int64_t j = 0; j < p.pooled_size[COLUMN]; j++) {
            const IVec winner = load_first_bytes(code, lanes);
            const Mask live = differ(winner, splat((int32_t)DEAD));
            const Vec g = load_first(dy, lanes);
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int k = 0; k < KERNEL; k++)
                    sums[r][k] += g * pick_of_four(quad + r * row_step + k * column_step, winner, live);
            dy += pooled.step, code += pooled.step;
            quad += 2 * p.stride[COLUMN] * 4;
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int k = 0; k < KERNEL; k++) {
            float* to = totals + ((first + r) * KERNEL + k) * L;
            store(to, load(to) + sums[r][k]);
        }
}

template <int KERNEL>
void few_kernel(const Problem& p, const Band& band, const Quads& quads, const Pooled& pooled, int64_t channel, float* totals) {
    constexpr int ROWS = ROWS_AT_ONCE<KERNEL>, REST = KERNEL % ROWS;
    for (int64_t first = 0; first + ROWS <= KERNEL; first += ROWS)
        few_taps<ROWS, KERNEL>(p, band, quads, pooled, channel, first, totals);
    if constexpr (REST) few_taps<REST, KERNEL>(p, band, quads, pooled, channel, KERNEL - REST, totals);
}

// The sum over a band of the live dy of L channels.
inline void add_bias_gradient(const Problem& p, const Band& band, const Pooled& pooled, int64_t channel, float* total) {
    const int lanes = (int)std::min<int64_t>(L, p.out_channels - channel);
    Vec sum = {};
    const int64_t count = band.rows.size() * p.pooled_size[COLUMN];
    for (int64_t w = 0; w < count; w++) {
        const IVec winner = load_first_bytes(pooled.code + w * pooled.step + channel, lanes);
        sum += select(differ(winner, splat((int32_t)DEAD)), load_first(pooled.dy + w * pooled.step + channel, lanes), Vec{});
    }
    store(total, load(total) + sum);
}

inline void backward_few(const Problem& p, const float* x, const float* dy, const uint8_t* code, float* dw, float* db) {
    static thread_local Scratch partial_memory;
    const int64_t channels = round_up(p.out_channels, L), taps = p.taps(), block = (p.reduction() + 1) * L;
    const int64_t floats = p.groups * channels / L * block;  // [group][channel vector]{[in channel][tap][lane], db [lane]}
    const int64_t chunks = std::min<int64_t>(p.batch, 32);
    float* partial = partial_memory.get<float>(chunks * floats);
    const int64_t row_floats = 2 * p.stride[ROW] * input_width(p) * 4 + p.pooled_size[COLUMN] * channels;
    const int64_t height = std::clamp<int64_t>((64 << 10) / row_floats, 1, p.pooled_size[ROW]);
#pragma omp parallel for schedule(static) num_threads((int)p.threads) if (p.threads > 1)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        static thread_local Scratch copy, quad_memory, windows;
        float* sums = partial + chunk * floats;
        std::fill_n(sums, floats, 0.f);
        for (int64_t image = chunk * p.batch / chunks; image < (chunk + 1) * p.batch / chunks; image++) {
            for (int64_t group = 0; group < p.groups; group++) {
                for (int64_t first = 0; first < p.pooled_size[ROW]; first += height) {
                    const Band band(p, {first, std::min(first + height, p.pooled_size[ROW])});
                    const Input in = padded_input(p, group_of(p, x, image, group), band.conv[ROW], copy);
                    const Pooled pooled = pooled_band(p, dy, code, image, group, band.rows, true, windows);
                    for (int64_t ci = 0; ci < p.in_channels; ci++) {
                        const Quads quads = make_quads(p, band, in, ci, quad_memory);
                        for (int64_t c = 0; c < channels; c += L) {
                            float* to = sums + (group * channels + c) / L * block;
                            float* totals = to + ci * taps * L;
                            p.kernel[ROW] == 3 ? few_kernel<3>(p, band, quads, pooled, c, totals)
                                               : few_kernel<5>(p, band, quads, pooled, c, totals);
                            if (ci == 0) add_bias_gradient(p, band, pooled, c, to + p.reduction() * L);
                        }
                    }
                }
            }
        }
    }
    for (int64_t chunk = 1; chunk < chunks; chunk++)
        for (int64_t i = 0; i < floats; i++) partial[i] += partial[chunk * floats + i];
    for (int64_t out = 0; out < p.groups * p.out_channels; out++) {
        const int64_t group = out / p.out_channels, channel = out % p.out_channels;
        const float* from = partial + (group * channels / L + channel / L) * block + channel % L;
        for (int64_t ci = 0; dw && ci < p.in_channels; ci++)
            for (int64_t kh = 0; kh < p.kernel[ROW]; kh++)
                for (int64_t kw = 0; kw < p.kernel[COLUMN]; kw++, from += L)
                    dw[out * p.dw_stride[BATCH] + ci * p.dw_stride[CHANNEL] + kh * p.dw_stride[HEIGHT] + kw * p.dw_stride[WIDTH]] = *from;
        if (db) db[out] = *from;
    }
}

}  // namespace
