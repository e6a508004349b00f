// The live positions of a block of windows, in the two orders that the gradients want: by output channel for dw, by
// position for dx. Only these take part in the arithmetic: with a 2x2 window at most a quarter of what dense kernels do.
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

// Offsets, in a band of patches, of each window and of each code.
class Offsets {
   public:
    Offsets(const Problem& p, const PatchLayout& layout, const Band& band, Scratch& memory) {
        const int64_t count = band.rows.size() * p.pooled_size[COLUMN];
        windows_ = memory.get<int32_t>(count + 256 + 2 * L);
        codes_ = windows_ + count + L;
        int32_t* to = windows_;
        for (int64_t i = band.rows.begin; i < band.rows.end; i++)
            for (int64_t j = 0; j < p.pooled_size[COLUMN]; j++)
                *to++ = (int32_t)((p.window_start(ROW, i) - band.conv[ROW].begin) * layout.row +
                                  (p.window_start(COLUMN, j) - band.conv[COLUMN].begin) * layout.column);
        std::fill_n(to, L, 0);
        for (int64_t code = 0; code < 256; code++)
            codes_[code] = code >= p.window() ? 0
                                              : (int32_t)(code / p.pool_kernel[COLUMN] * p.pool_dilation[ROW] * layout.row +
                                                          code % p.pool_kernel[COLUMN] * p.pool_dilation[COLUMN] * layout.column);
        small_ = p.window() <= L;
    }
    const int32_t* windows() const { return windows_; }
    int32_t code(int64_t code) const { return codes_[code]; }
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
    }

    // Collects `windows` of a band; adds each channel's live gradients to db.
    void fill(const Problem& p, const Pooled& by_channel, const Offsets& where, Range windows, float* db) {
        for (int64_t c = 0; c < p.out_channels; c++) {
            const float* dy = by_channel.dy + c * by_channel.step;
            const uint8_t* code = by_channel.code + c * by_channel.step;
            int32_t* to = offsets + c * room;
            float* values = gradients + c * room;
            Vec total = {};
            int32_t count = 0;
            for (int64_t w = windows.begin; w < windows.end; w += L) {
                const int n = windows.end - w < L ? (int)(windows.end - w) : L;
                const IVec codes = load_first_bytes(code + w, n);
                const Vec value = load_first(dy + w, n);
                const Mask dead = equal(codes, splat((int32_t)DEAD));
                const unsigned live = ~mask_bits(dead) & ((1u << n) - 1);
                total += select(dead, Vec{}, value);
                store(to + count, compress(load(where.windows() + w) + where.codes(codes), live));
                store(values + count, compress(value, live));
                count += __builtin_popcount(live);
            }
            counts[c] = count;
            db[c] += sum(total);
        }
    }
};

// Live outputs by conv position: each bucket is one window and one of its positions, with the channels that won there.
struct Buckets {
    int64_t count;
    int32_t* offsets;  // of each bucket's patch
    int32_t* ends;     // of each bucket's entries
    int32_t* channels;
    float* gradients;

    Buckets(const Problem& p, int64_t windows, Scratch& memory) : count(0) {
        const int64_t entries = windows * p.out_channels, most = windows * std::min(p.window(), p.out_channels);
        offsets = memory.get<int32_t>(2 * most + 2 * (entries + L));
        ends = offsets + most;
        channels = ends + most;
        gradients = (float*)(channels + entries + L);
    }

    void fill(const Problem& p, const Pooled& by_window, const Offsets& where, Range windows) {
        int32_t end = 0;
        count = 0;
        for (int64_t w = windows.begin; w < windows.end; w++) {
            const float* dy = by_window.dy + w * by_window.step;
            const uint8_t* code = by_window.code + w * by_window.step;
            for (int32_t position = 0; position < (int32_t)p.window(); position++) {
                const int32_t begin = end;
                for (int64_t c = 0; c < p.out_channels; c += L) {
                    const int n = p.out_channels - c < L ? (int)(p.out_channels - c) : L;
                    const unsigned won = mask_bits(equal(load_first_bytes(code + c, n), splat(position))) & ((1u << n) - 1);
                    if (!won) continue;
                    store(channels + end, compress(lane_numbers() + splat((int32_t)c), won));
                    store(gradients + end, compress(load_first(dy + c, n), won));
                    end += __builtin_popcount(won);
                }
                if (end == begin) continue;
                offsets[count] = where.windows()[w] + where.code(position);
                ends[count++] = end;
            }
        }
    }
};

}  // namespace
