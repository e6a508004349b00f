// How forward kernels write y and code: channels innermost, straight into the result or into a tile that is then transposed.
#pragma once

#include "problem.h"
#include "scratch.h"
#include "simd.h"
#include "transpose.h"

namespace {

constexpr int CHANNEL_VECTORS = 2;  // of output channels in a register tile

// L values and codes of one window; `count` of them exist.
INLINE void write_window(float* y, uint8_t* code, Vec value, IVec winner, int64_t count) {
    const Mask dead = at_most(value, Vec{});
    store_first(y, select(dead, Vec{}, value), count < L ? count : L);
    if (code) store_first_bytes(code, select(dead, splat((int32_t)DEAD), winner), count < L ? count : L);
}

// The same from the window's four conv outputs, row by row. UNORDERED: one may be NaN.
template <bool UNORDERED>
INLINE void write_window(float* y, uint8_t* code, const Vec (&z)[4], int64_t count) {
    if constexpr (UNORDERED) {
        Vec best = z[0];
        IVec winner = {};
        UNROLL for (int i = 1; i < 4; i++) {
            const Mask better = takes_maximum(z[i], best);
            best = select(better, z[i], best);
            winner = select(better, splat((int32_t)i), winner);
        }
        return write_window(y, code, best, winner, count);
    }
    const int n = count < L ? (int)count : L;
    const Vec top = maximum(z[0], z[1]), bottom = maximum(z[2], z[3]), best = maximum(top, bottom);
    const Mask dead = at_most(best, Vec{});
    store_first(y, select(dead, Vec{}, best), n);
    if (code) store_first_winners(code, greater(z[1], z[0]), greater(z[3], z[2]), greater(bottom, top), dead, n);
}

// The windows of pooled rows [begin, end) of one group of one image or, where that is all rows, of several: as a matrix
// [window][channel].
class OutputBand {
   public:
    OutputBand(const Problem& p, float* y, uint8_t* code, int64_t image, int64_t group, Range rows, Scratch& tile)
        : OutputBand(p, y, code, {image, image + 1}, group, rows, tile) {}
    OutputBand(const Problem& p, float* y, uint8_t* code, Range images, int64_t group, Range rows, Scratch& tile)
        : p_(p), images_(images.size()), windows_(rows.size() * p.pooled_size[COLUMN]) {
        const int64_t offset =
            images.begin * p.y_stride[BATCH] + group * p.out_channels * p.y_stride[CHANNEL] + rows.begin * p.y_stride[HEIGHT];
        final_y_ = y + offset;
        final_code_ = code ? code + offset : nullptr;
        // A plane of one element has unit strides in either format: only the images tell them apart.
        in_place_ = p.y_stride[CHANNEL] == 1 && (images_ == 1 || p.y_stride[BATCH] == windows_ * p.y_stride[WIDTH]);
        if (in_place_) {
            y_ = final_y_, code_ = final_code_, step_ = p.y_stride[WIDTH];
        } else {
            step_ = round_up(p.out_channels, L);
            const int64_t floats = images_ * windows_ * step_;
            y_ = tile.get<float>(floats + floats / 4 + L);
            code_ = code ? (uint8_t*)(y_ + floats) : nullptr;
        }
    }

    float* y(int64_t window, int64_t channel) const { return y_ + window * step_ + channel; }
    uint8_t* code(int64_t window, int64_t channel) const { return code_ ? code_ + window * step_ + channel : nullptr; }

    // To be called once, after the last window was written.
    void finish() const {
        if (in_place_) return;
        for (int64_t i = 0; i < images_; i++) {
            const int64_t from = i * windows_ * step_, to = i * p_.y_stride[BATCH];
            transpose_matrix(y_ + from, step_, windows_, p_.out_channels, final_y_ + to, p_.y_stride[CHANNEL]);
            if (code_) transpose_matrix(code_ + from, step_, windows_, p_.out_channels, final_code_ + to, p_.y_stride[CHANNEL]);
        }
    }

   private:
    const Problem& p_;
    int64_t images_, windows_, step_;  // windows of an image
    float *final_y_, *y_;
    uint8_t *final_code_, *code_;
    bool in_place_;
};

}  // namespace
