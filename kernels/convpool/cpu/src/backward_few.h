// dw and db of layers with few products a position, such as a network's first: lanes are output channels, all windows are
// visited, and each lane picks the x under its own winner. Listing the live ones would cost more than it saves here.
//
// The four values that a tap can meet in a 2x2 window stand side by side ("quads"), so that one broadcast load and one
// permutation within 128 bits, indexed by the code itself, give every lane its own.
#pragma once

#include <atomic>
#include <optional>

#include "winners.h"

namespace {

// The values of x that the taps of a band meet, in coordinates of its first row and column: floats from one quad to that of
// the next channel, row and column.
struct Quads {
    float* data;
    int64_t channel, row, column;
};

inline Quads make_quads(const Problem& p, const Band& band, const Input& in, Scratch& memory) {
    const int64_t width = band.input[COLUMN].size() - p.stride[COLUMN], height = band.input[ROW].size() - p.stride[ROW];
    const bool innermost = in.channel == 1 && in.column == p.in_channels;
    const int64_t planes = innermost ? 1 : p.in_channels, run = innermost ? p.in_channels : 1;
    const Quads quads{memory.get<float>(planes * height * width * run * 4 + 4 * L), innermost ? 4 : height * width * 4,
                      width * run * 4, run * 4};
    const int64_t right = p.stride[COLUMN] * in.column, below = p.stride[ROW] * in.row;
    for (int64_t plane = 0; plane < planes; plane++) {
        for (int64_t r = 0; r < height; r++) {
            const float* from = in.at(plane, band.input[ROW].begin + r, band.input[COLUMN].begin);
            float* to = quads.data + plane * quads.channel + r * quads.row;
            if (in.column == run) {
                for (int64_t i = 0; i < width * run; i += L) {  // what is written beyond a row, the next one overwrites
                    const int n = width * run - i < L ? (int)(width * run - i) : L;
                    const float* at = from + i;
                    store_quads(to + 4 * i, load_first(at, n), load_first(at + right, n), load_first(at + below, n),
                                load_first(at + below + right, n));
                }
                continue;
            }
            for (int64_t k = 0; k < width; k++, from += in.column, to += 4)
                to[0] = from[0], to[1] = from[right], to[2] = from[below], to[3] = from[below + right];
        }
    }
    return quads;
}

// Kernel rows, of all input channels, whose sums fit into registers beside their total, dy and code.
template <int KERNEL>
constexpr int MOST_ROWS = (REGISTERS - 5) / KERNEL;

// totals[row][column] += sum over a band's windows of dy * x under the winner, for `ROWS` kernel rows at these offsets;
// bias_total += sum of dy.
template <int KERNEL, int ROWS>
void few_rows(const Problem& p, const Band& band, const Quads& quads, const int64_t* rows, const Pooled& pooled, int64_t channel,
              float* totals, float* bias_total) {
    const int lanes = (int)std::min<int64_t>(L, p.out_channels - channel);
    Vec sums[ROWS][KERNEL] = {}, total = {};
    const float* dy = pooled.dy + channel;
    const uint8_t* code = pooled.code + channel;
    const int64_t tap = p.dilation[COLUMN] * quads.column, down = 2 * p.stride[ROW] * quads.row, right = 2 * p.stride[COLUMN] * quads.column;
    for (int64_t i = 0; i < band.rows.size(); i++) {
        const float* quad = quads.data + i * down;
        for (int64_t j = 0; j < p.pooled_size[COLUMN]; j++) {
            const IVec winner = load_first_bytes(code, lanes);
            const Mask live = differ(winner, splat((int32_t)DEAD));
            const Vec g = select(live, load_first(dy, lanes), Vec{});  // dead, it may be infinite: 0 * that must not arise
            total += g;
            UNROLL for (int r = 0; r < ROWS; r++) {
                const float* at = quad + rows[r];
                UNROLL for (int k = 0; k < KERNEL; k++) sums[r][k] += g * pick_of_four(at + k * tap, winner, live);
            }
            dy += pooled.step, code += pooled.step, quad += right;
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int k = 0; k < KERNEL; k++) {
            float* to = totals + (r * KERNEL + k) * L;
            store(to, load(to) + sums[r][k]);
        }
    if (bias_total) store(bias_total, load(bias_total) + total);
}

using FewRows = decltype(&few_rows<3, 1>);
template <int KERNEL, int... I>
FewRows few_kernel(int64_t rows, std::integer_sequence<int, I...>) {
    static constexpr FewRows KERNELS[] = {few_rows<KERNEL, I + 1>...};
    return KERNELS[rows - 1];
}

// All taps of L output channels from `channel`.  sums: [in channel][tap][lane], then db [lane]
template <int KERNEL>
void few_taps(const Problem& p, const Band& band, const Quads& quads, const Pooled& pooled, int64_t channel, float* sums) {
    constexpr int MOST = MOST_ROWS<KERNEL>;
    const int64_t count = p.in_channels * KERNEL;
    for (int64_t first = 0; first < count; first += MOST) {
        int64_t rows[MOST] = {};
        const int64_t some = std::min<int64_t>(MOST, count - first);
        for (int64_t r = 0; r < some; r++)
            rows[r] = (first + r) / KERNEL * quads.channel + (first + r) % KERNEL * p.dilation[ROW] * quads.row;
        few_kernel<KERNEL>(some, std::make_integer_sequence<int, MOST>())(
            p, band, quads, rows, pooled, channel, sums + first * KERNEL * L, first ? nullptr : sums + count * KERNEL * L);
    }
}

// Nothing where a code was wrong: what it wrote is then not to be used.
inline std::optional<Kernel> backward_few(const Problem& p, const float* x, const float* dy, const uint8_t* code, float* dw,
                                          float* db) {
    static thread_local Scratch partial_memory;
    const int64_t channels = round_up(p.out_channels, L), block = (p.reduction() + 1) * L;
    const int64_t floats = p.groups * channels / L * block;  // [group][channel vector]{[in channel][tap][lane], db [lane]}
    const int64_t chunks = std::min<int64_t>(p.batch, 32);
    float* partial = partial_memory.get<float>(chunks * floats);
    const int64_t row_floats = 2 * p.stride[ROW] * input_width(p) * 4 + p.pooled_size[COLUMN] * channels;
    const int64_t height = std::clamp<int64_t>((64 << 10) / row_floats, 1, p.pooled_size[ROW]);
    std::atomic<bool> right{true};
#pragma omp parallel for schedule(static) num_threads((int)p.threads) if (p.threads > 1)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        static thread_local Scratch copy, quad_memory, windows;
        float* sums = partial + chunk * floats;
        std::fill_n(sums, floats, 0.f);
        const Range images = part_of({0, p.batch}, chunk, chunks);
        if (!codes_are_right(p, code, images)) {
            right = false;
            continue;
        }
        for (int64_t image = images.begin; image < images.end; image++) {
            for (int64_t group = 0; group < p.groups; group++) {
                for (int64_t first = 0; first < p.pooled_size[ROW]; first += height) {
                    const Band band(p, {first, std::min(first + height, p.pooled_size[ROW])});
                    const Input in = padded_input(p, group_of(p, x, image, group), band.conv[ROW], copy);
                    const Pooled pooled = pooled_band(p, dy, code, image, group, band.rows, true, windows);
                    const Quads quads = make_quads(p, band, in, quad_memory);
                    for (int64_t c = 0; c < channels; c += L) {
                        float* to = sums + (group * channels + c) / L * block;
                        (p.kernel[ROW] == 3 ? few_taps<3> : few_taps<5>)(p, band, quads, pooled, c, to);
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
        for (int64_t ci = 0; ci < p.in_channels; ci++)
            for (int64_t kh = 0; kh < p.kernel[ROW]; kh++)
                for (int64_t kw = 0; kw < p.kernel[COLUMN]; kw++, from += L)
                    dw[out * p.dw_stride[BATCH] + ci * p.dw_stride[CHANNEL] + kh * p.dw_stride[HEIGHT] + kw * p.dw_stride[WIDTH]] = *from;
        if (db) db[out] = *from;
    }
    if (!right) return std::nullopt;
    return Kernel::backward_few;
}

}  // namespace
