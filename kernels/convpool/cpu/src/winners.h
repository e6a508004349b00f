// The live positions of windows, in the two orders that the gradients want: by output channel for dw, by position for dx.
// Only these take part in the arithmetic: with a 2x2 window at most a quarter of what dense kernels do.
#pragma once

#include "patches.h"

namespace {

// dy and code of a band: windows are numbered row by row within it.
struct Pooled {
    const float* dy;
    const uint8_t* code;
    int64_t step;  // between channels, or between windows
};

// A band of dy and code with the windows of one channel side by side, or with the channels of one window side by side:
// one of the two is the tensors themselves, the other a transposed copy.
inline Pooled pooled_band(const Problem& p, const float* dy, const uint8_t* code, int64_t image, int64_t group, Range rows,
                          bool by_window, Scratch& copy) {
    const int64_t offset =
        image * p.y_stride[BATCH] + group * p.out_channels * p.y_stride[CHANNEL] + rows.begin * p.y_stride[HEIGHT];
    const bool is_by_window = p.y_stride[CHANNEL] == 1;
    const int64_t step = is_by_window ? p.y_stride[WIDTH] : p.y_stride[CHANNEL];
    if (is_by_window == by_window) return {dy + offset, code + offset, step};
    const int64_t windows = rows.size() * p.pooled_size[COLUMN];
    const int64_t height = is_by_window ? windows : p.out_channels, width = is_by_window ? p.out_channels : windows;
    float* values = copy.get<float>(height * width + height * width / 4 + L);
    uint8_t* codes = (uint8_t*)(values + height * width);
    transpose_matrix(dy + offset, step, height, width, values, height);
    transpose_matrix(code + offset, step, height, width, codes, height);
    return {values, codes, height};
}

// Whether each code is DEAD or below `window`: one more, as a byte, is at most `window`.
inline bool below_window(const uint8_t* code, int64_t count, int64_t window) {
    uint8_t largest = 0;
    for (int64_t i = 0; i < count; i++) largest = std::max(largest, (uint8_t)(code[i] + 1));
    return largest <= window;
}

// Whether the codes of some images, all that lie in memory between them, name conv outputs or are DEAD. Kernels follow them
// into x and dx; what comes back from where a tensor was kept may be anything.
inline bool codes_are_right(const Problem& p, const uint8_t* code, Range images) {
    const int64_t image_size = p.groups * p.out_channels * p.pooled();
    if (!below_window(code + images.begin * image_size, images.size() * image_size, p.window())) return false;
    if (p.plain_pool()) return true;
    const bool by_window = p.y_stride[CHANNEL] == 1;
    const int64_t channels = p.groups * p.out_channels;
    const int64_t channel = by_window ? 1 : p.pooled(), window = by_window ? channels : 1;
    const auto overhangs = [&](int axis, int64_t i) {
        return p.window_start(axis, i) < 0 || p.window_start(axis, i) + p.window_span(axis) > p.conv_size[axis];
    };
    const auto holds = [&](int axis, int64_t i, int64_t position) {
        const int64_t at = p.window_start(axis, i) + position * p.pool_dilation[axis];
        return at >= 0 && at < p.conv_size[axis];
    };
    for (int64_t i = 0; i < p.pooled_size[ROW]; i++) {
        for (int64_t j = 0; j < p.pooled_size[COLUMN]; j++) {
            if (!overhangs(ROW, i) && !overhangs(COLUMN, j)) continue;
            bool right[256];
            for (int c = 0; c < 256; c++)
                right[c] = c == DEAD || (c < p.window() && holds(ROW, i, c / p.pool_kernel[COLUMN]) &&
                                         holds(COLUMN, j, c % p.pool_kernel[COLUMN]));
            for (int64_t image = images.begin; image < images.end; image++) {
                const uint8_t* from = code + image * image_size + (i * p.pooled_size[COLUMN] + j) * window;
                for (int64_t c = 0; c < channels; c++)
                    if (!right[from[c * channel]]) return false;
            }
        }
    }
    return true;
}

// Offsets, in a band of patches, of each window of an image and of each code.
class Offsets {
   public:
    Offsets(const Problem& p, const PatchLayout& layout, const Band& band, Scratch& memory) {
        const int64_t count = band.rows.size() * p.pooled_size[COLUMN];
        small_ = p.window() <= L;
        windows_ = memory.get<int32_t>(count + 256 + 2 * L);
        codes_ = windows_ + count + L;
        int32_t* to = windows_;
        for (int64_t i = band.rows.begin; i < band.rows.end; i++)
            for (int64_t j = 0; j < p.pooled_size[COLUMN]; j++)
                *to++ = (int32_t)((p.window_start(ROW, i) - band.conv[ROW].begin) * layout.row +
                                  (p.window_start(COLUMN, j) - band.conv[COLUMN].begin) * layout.column);
        std::fill_n(to, L, 0);
        for (int64_t i = 0; i < p.pool_kernel[ROW]; i++)
            for (int64_t j = 0; j < p.pool_kernel[COLUMN]; j++)
                codes_[i * p.pool_kernel[COLUMN] + j] =
                    (int32_t)(i * p.pool_dilation[ROW] * layout.row + j * p.pool_dilation[COLUMN] * layout.column);
        std::fill(codes_ + p.window(), codes_ + (small_ ? L : 256), 0);  // what DEAD looks up
    }
    const int32_t* windows() const { return windows_; }
    const int32_t* codes() const { return codes_; }
    IVec codes(IVec code) const { return small_ ? permute(load(codes_), code) : look_up(codes_, code); }

   private:
    int32_t *windows_, *codes_;
    bool small_;
};

// For each output channel, the offsets and gradients of its live windows.
struct ChannelLists {
    int64_t room;  // for entries of one channel
    int32_t* offsets;
    float* gradients;
    int32_t* counts;

    ChannelLists(const Problem& p, int64_t windows, Scratch& memory) : room(windows + L) {
        gradients = memory.get<float>(p.out_channels * (2 * room + 1));
        offsets = (int32_t*)(gradients + p.out_channels * room);
        counts = offsets + p.out_channels * room;
        clear(p);
    }

    void clear(const Problem& p) { std::fill_n(counts, p.out_channels, 0); }

    // Appends `windows` of an image of a band, whose patches begin at `image`; adds each channel's live gradients to db.
    void append(const Problem& p, const Pooled& by_channel, const Offsets& where, Range windows, int32_t image, float* db) {
        for (int64_t c = 0; c < p.out_channels; c++) {
            const float* dy = by_channel.dy + c * by_channel.step;
            const uint8_t* code = by_channel.code + c * by_channel.step;
            int32_t* to = offsets + c * room;
            float* values = gradients + c * room;
            Vec total = {};
            int32_t count = counts[c];
            for (int64_t w = windows.begin; w < windows.end; w += L) {
                const int n = windows.end - w < L ? (int)(windows.end - w) : L;
                const IVec codes = load_first_bytes(code + w, n);
                const Vec value = load_first(dy + w, n);
                const Mask dead = equal(codes, splat((int32_t)DEAD));
                const unsigned live = ~mask_bits(dead) & ((1u << n) - 1);
                total += select(dead, Vec{}, value);
                store(to + count, compress(load(where.windows() + w) + where.codes(codes) + splat(image), live));
                store(values + count, compress(value, live));
                count += __builtin_popcount(live);
            }
            counts[c] = count;
            db[c] += sum(total);
        }
    }
};

// For each window of a band and each of its positions, the channels that won there: a bit each, 64 channels to a word.
struct WinnerBits {
    int64_t words;   // of channels
    uint64_t* bits;  // [word][image][window][position]
    int64_t word;    // from one word to the next

    WinnerBits(const Problem& p, const uint8_t* code, int64_t images, Range rows, Scratch& memory, Scratch& copy)
        : words((p.out_channels - 1) / 64 + 1) {
        const int64_t windows = rows.size() * p.pooled_size[COLUMN];
        word = images * windows * p.window();
        bits = memory.get<uint64_t>(words * word);
        uint64_t* to = bits;
        for (int64_t image = 0; image < images; image++) {
            const uint8_t* from = code + image * p.y_stride[BATCH];
            int64_t step = p.y_stride[WIDTH];
            if (p.y_stride[CHANNEL] != 1) {
                step = round_up(p.out_channels, 64);
                uint8_t* by_window = copy.get<uint8_t>(windows * step);
                transpose_matrix(from, p.y_stride[CHANNEL], p.out_channels, windows, by_window, step);
                from = by_window;
            }
            for (int64_t w = 0; w < windows; w++, from += step, to += p.window()) {
                for (int64_t i = 0; i < words; i++) {
                    const Bytes codes(from + i * 64, (int)std::min<int64_t>(64, p.out_channels - i * 64));
                    for (int64_t position = 0; position < p.window(); position++)
                        to[i * word + position] = codes.equal((uint8_t)position);
                }
            }
        }
    }
};

}  // namespace
