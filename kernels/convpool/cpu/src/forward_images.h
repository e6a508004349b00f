// The convolution with images as lanes: each element of x and of the result is a vector over L images. However few the
// channels and narrow the image, no lane idles; and as an image lies in one piece in either memory format, turning
// [image][element] into [element][image] and back is all that a format costs.
#pragma once

#include "input.h"
#include "output.h"

namespace {

// Whether no value is beyond 1e12, or NaN: fewer than 1e13 products of such values sum up to no infinity and no NaN.
inline bool all_moderate(const float* values, int64_t count) {
    unsigned all = (1u << L) - 1;
    for (int64_t i = 0; i < count; i += L) {
        const Vec v = load_first(values + i, count - i < L ? (int)(count - i) : L);
        all &= mask_bits(at_most(magnitude(v), splat(1e12f)));
    }
    return all == (1u << L) - 1;
}

constexpr int IMAGES_CHANNELS = REGISTERS == 32 ? 6 : 2;  // output channels at once, with four sums each

// L images of one group, some rows of them.
struct ImagesBand {
    const Problem& p;
    int64_t first, images, group;
    Range rows;  // pooled

    bool x_innermost() const { return p.x_stride[CHANNEL] == 1; }
    bool y_innermost() const { return p.y_stride[CHANNEL] == 1; }
    Range input(int axis) const {
        return input_range(p, axis, conv_range(p, axis, axis == ROW ? rows : Range{0, p.pooled_size[COLUMN]}));
    }
};

// x of a band as vectors, zeros in the padding.
struct ImagesInput {
    float* data;
    int64_t channel, row, column;  // floats between neighbours
    bool moderate;

    ImagesInput(const ImagesBand& band, const float* x, Scratch& memory) {
        const Problem& p = band.p;
        const Range rows = band.input(ROW), columns = band.input(COLUMN);
        const bool innermost = band.x_innermost();
        const int64_t planes = innermost ? 1 : p.in_channels, run = innermost ? p.in_channels : 1;
        column = run * L, row = columns.size() * column, channel = innermost ? L : rows.size() * row;
        data = memory.get<float>(planes * rows.size() * row);
        if (band.images < L || rows.begin < 0 || rows.end > p.size[ROW] || columns.begin < 0 || columns.end > p.size[COLUMN])
            std::fill_n(data, planes * rows.size() * row, 0.f);
        const Range inside_rows{std::max<int64_t>(rows.begin, 0), std::min(rows.end, p.size[ROW])};
        const Range inside{std::max<int64_t>(columns.begin, 0), std::min(columns.end, p.size[COLUMN])};
        const bool one_piece = inside.size() == columns.size() && p.x_stride[HEIGHT] == inside.size() * run;
        const int64_t pieces = one_piece ? 1 : inside_rows.size(), length = inside.size() * run * (one_piece ? inside_rows.size() : 1);
        for (int64_t plane = 0; plane < planes; plane++) {
            const float* from = group_of(p, x, band.first, band.group) + plane * p.x_stride[CHANNEL] +
                                inside_rows.begin * p.x_stride[HEIGHT] + inside.begin * p.x_stride[WIDTH];
            float* to = data + plane * channel + (inside_rows.begin - rows.begin) * row + (inside.begin - columns.begin) * column;
            for (int64_t i = 0; i < pieces; i++, from += p.x_stride[HEIGHT], to += row)
                transpose_matrix(from, p.x_stride[BATCH], band.images, length, to, L);
        }
        moderate = all_moderate(data, planes * rows.size() * row);
    }
};

struct ImagesPlan {
    const Problem& p;
    float* weights;  // [group][block of channels][tap][channel of the block]
    float* bias;     // [group][channel]
    bool moderate;

    ImagesPlan(const Problem& problem, const float* w, const float* b, Scratch& memory) : p(problem) {
        const int64_t taps = p.reduction(), outputs = p.groups * p.out_channels;
        weights = memory.get<float>(outputs * (taps + 1));
        bias = weights + outputs * taps;
        for (int64_t out = 0; out < outputs; out++) {
            const int64_t channel = out % p.out_channels, block = channel / IMAGES_CHANNELS * IMAGES_CHANNELS;
            const int64_t width = std::min<int64_t>(IMAGES_CHANNELS, p.out_channels - block);
            float* to = weights + (out - channel + block) * taps + (channel - block);
            for (int64_t kh = 0; kh < p.kernel[ROW]; kh++)
                for (int64_t kw = 0; kw < p.kernel[COLUMN]; kw++)
                    for (int64_t ci = 0; ci < p.in_channels; ci++, to += width)
                        *to = w[out * p.w_stride[BATCH] + ci * p.w_stride[CHANNEL] + kh * p.w_stride[HEIGHT] + kw * p.w_stride[WIDTH]];
            bias[out] = b ? b[out] : 0.f;
        }
        moderate = all_moderate(weights, outputs * (taps + 1));
    }
};

// A part of a band's result: some channels of some rows, elements in the order of y.
struct ImagesTile {
    const ImagesBand& band;
    Range channels, rows;  // rows: pooled
    float* y;
    uint8_t* code;

    int64_t windows() const { return rows.size() * band.p.pooled_size[COLUMN]; }
    // Place of a channel of a window, in elements.
    int64_t element(int64_t channel, int64_t window) const {
        channel -= channels.begin;
        return band.y_innermost() ? window * channels.size() + channel : channel * windows() + window;
    }
    void write(float* to_y, uint8_t* to_code) const {
        const Problem& p = band.p;
        const bool innermost = band.y_innermost();
        int64_t pieces = innermost ? windows() : channels.size(), length = innermost ? channels.size() : windows();
        const int64_t step = innermost ? p.y_stride[WIDTH] : p.y_stride[CHANNEL];
        if (step == length) length *= pieces, pieces = 1;
        const int64_t offset = band.first * p.y_stride[BATCH] + (band.group * p.out_channels + channels.begin) * p.y_stride[CHANNEL] +
                               rows.begin * p.y_stride[HEIGHT];
        for (int64_t i = 0; i < pieces; i++) {
            transpose_matrix(y + i * length * L, L, length, band.images, to_y + offset + i * step, p.y_stride[BATCH]);
            if (to_code) transpose_matrix(code + i * length * L, L, length, band.images, to_code + offset + i * step, p.y_stride[BATCH]);
        }
    }
};

// `CHANNELS` channels from `channel` of a tile, all its windows.
template <int CHANNELS, bool UNORDERED>
void images_channels(const ImagesPlan& plan, const ImagesInput& in, const int64_t* offsets, const ImagesTile& tile, int64_t channel) {
    const Problem& p = plan.p;
    const int64_t taps = p.reduction(), out = tile.band.group * p.out_channels + channel;
    const float *weights = plan.weights + out * taps, *bias = plan.bias + out;
    const int64_t right = p.stride[COLUMN] * in.column, down = p.stride[ROW] * in.row;
    int64_t window = 0;
    for (int64_t row = tile.rows.begin; row < tile.rows.end; row++) {
        const float* at = in.data + 2 * (row - tile.band.rows.begin) * down;
        for (int64_t column = 0; column < p.pooled_size[COLUMN]; column++, window++, at += 2 * right) {
            Vec sums[4][CHANNELS] = {};
            const float* w = weights;
            for (int64_t tap = 0; tap < taps; tap++, w += CHANNELS) {
                const float* from = at + offsets[tap];
                const Vec x[4] = {load(from), load(from + right), load(from + down), load(from + down + right)};
                UNROLL for (int c = 0; c < CHANNELS; c++) {
                    const Vec weight = splat(w[c]);
                    UNROLL for (int i = 0; i < 4; i++) sums[i][c] += x[i] * weight;
                }
            }
            UNROLL for (int c = 0; c < CHANNELS; c++) {
                const Vec b = splat(bias[c]);  // last: a sum that begins with it rounds more
                const Vec z[4] = {sums[0][c] + b, sums[1][c] + b, sums[2][c] + b, sums[3][c] + b};
                const int64_t element = tile.element(channel + c, window) * L;
                write_window<UNORDERED>(tile.y + element, tile.code ? tile.code + element : nullptr, z, L);
            }
        }
    }
}

using ImagesChannels = decltype(&images_channels<1, true>);
template <int... I>
ImagesChannels images_kernel(int64_t channels, bool unordered, std::integer_sequence<int, I...>) {
    static constexpr ImagesChannels KERNELS[][2] = {{images_channels<I + 1, false>, images_channels<I + 1, true>}...};
    return KERNELS[channels - 1][unordered];
}

inline void images_band(const ImagesPlan& plan, const ImagesBand& band, const float* x, float* y, uint8_t* code) {
    static thread_local Scratch input, offset_memory, tile_memory;
    const Problem& p = plan.p;
    const ImagesInput in(band, x, input);
    int64_t* offsets = offset_memory.get<int64_t>(p.reduction());
    tap_offsets(p, {nullptr, in.channel, in.row, in.column}, offsets);
    const bool unordered = !(plan.moderate && in.moderate);
    // A tile is written in one go: so many channels, or rows, that its elements are neighbours in y.
    const int64_t some_channels = band.y_innermost() ? p.out_channels : IMAGES_CHANNELS;
    const int64_t some_rows = band.y_innermost() ? 1 : band.rows.size();
    const int64_t most = some_channels * some_rows * p.pooled_size[COLUMN] * L;
    float* tile_y = tile_memory.get<float>(most + most / 4 + L);
    for (int64_t c = 0; c < p.out_channels; c += some_channels) {
        for (int64_t r = band.rows.begin; r < band.rows.end; r += some_rows) {
            const Range channels{c, std::min(c + some_channels, p.out_channels)}, rows{r, std::min(r + some_rows, band.rows.end)};
            const ImagesTile tile{band, channels, rows, tile_y, code ? (uint8_t*)(tile_y + most) : nullptr};
            for (int64_t block = c; block < channels.end; block += IMAGES_CHANNELS) {
                const int64_t width = std::min<int64_t>(IMAGES_CHANNELS, channels.end - block);
                images_kernel(width, unordered, std::make_integer_sequence<int, IMAGES_CHANNELS>())(plan, in, offsets, tile, block);
            }
            tile.write(y, code);
        }
    }
}

inline Kernel forward_images(const Problem& p, const float* x, const float* w, const float* bias, float* y, uint8_t* code) {
    static thread_local Scratch weights;
    const ImagesPlan plan(p, w, bias, weights);
    const int64_t batches = (p.batch - 1) / L + 1;
    const Bands bands(p, batches * p.groups, 2 * p.stride[ROW] * p.size[COLUMN] * p.in_channels * L);
#pragma omp parallel for schedule(static) num_threads((int)p.threads) if (p.threads > 1)
    for (int64_t unit = 0; unit < batches * p.groups * bands.count; unit++) {
        const int64_t first = unit / bands.count / p.groups * L;
        images_band(plan, {p, first, std::min<int64_t>(L, p.batch - first), unit / bands.count % p.groups, bands.rows(unit % bands.count)},
                    x, y, code);
    }
    return Kernel::forward_images;
}

}  // namespace
