// How kernels see x: in place where no padding is read, else as a padded copy of a band of rows.
#pragma once

#include <cstring>

#include "problem.h"
#include "scratch.h"
#include "simd.h"

namespace {

// A window on one group of one image: element (channel c, row r, column k), in coordinates of x, is at(c, r, k).
struct Input {
    const float* origin;  // of channel 0, row 0, column 0, even where that lies outside
    int64_t channel, row, column;
    const float* at(int64_t c, int64_t r, int64_t k) const { return origin + c * channel + r * row + k * column; }
};

inline const float* group_of(const Problem& p, const float* x, int64_t image, int64_t group) {
    return x + image * p.x_stride[BATCH] + group * p.in_channels * p.x_stride[CHANNEL];
}

inline bool reads_padding(const Problem& p) {
    for (int axis : {ROW, COLUMN}) {
        const Range read = input_range(p, axis, conv_range(p, axis, {0, p.pooled_size[axis]}));
        if (read.begin < 0 || read.end > p.size[axis]) return true;
    }
    return false;
}

// Columns [begin, end) of one row, zeros outside x; `from` points at column 0.
inline void copy_padded_row(const float* from, int64_t step, int64_t size, Range columns, int64_t run, float* to) {
    // All of them may lie left of x: where the pool drops the conv columns that would reach it.
    const int64_t left = std::clamp<int64_t>(-columns.begin, 0, columns.size()), right = std::max<int64_t>(0, columns.end - size);
    const int64_t first = columns.begin + left, count = columns.size() - left - right;
    std::fill_n(to, left * run, 0.f);
    to += left * run;
    if (step == run) {
        memcpy(to, from + first * step, sizeof(float) * count * run);
    } else {
        for (int64_t k = 0; k < count; k++) memcpy(to + k * run, from + (first + k) * step, sizeof(float) * run);
    }
    std::fill_n(to + count * run, right * run, 0.f);
}

// The rows that conv rows `conv` read; `copy` is used only if padding is read. Keeps channels innermost or outermost, as in x.
inline Input padded_input(const Problem& p, const float* group, Range conv, Scratch& copy) {
    if (!reads_padding(p)) return {group, p.x_stride[CHANNEL], p.x_stride[HEIGHT], p.x_stride[WIDTH]};
    const Range rows = input_range(p, ROW, conv);
    const Range columns = input_range(p, COLUMN, conv_range(p, COLUMN, {0, p.pooled_size[COLUMN]}));
    const bool innermost = p.x_stride[CHANNEL] == 1;
    const int64_t planes = innermost ? 1 : p.in_channels, run = innermost ? p.in_channels : 1;
    const int64_t row = columns.size() * run, plane = rows.size() * row;
    float* to = copy.get<float>(planes * plane);
    for (int64_t c = 0; c < planes; c++) {
        for (int64_t r = rows.begin; r < rows.end; r++) {
            float* line = to + c * plane + (r - rows.begin) * row;
            if (r < 0 || r >= p.size[ROW])
                std::fill_n(line, row, 0.f);
            else
                copy_padded_row(group + c * p.x_stride[CHANNEL] + r * p.x_stride[HEIGHT], p.x_stride[WIDTH], p.size[COLUMN],
                                columns, run, line);
        }
    }
    return {to - rows.begin * row - columns.begin * run, innermost ? 1 : plane, row, run};
}

// Of each of the elements that one conv output reads, from the first of them: tap by tap, channel by channel.
inline void tap_offsets(const Problem& p, const Input& in, int64_t* offsets) {
    for (int64_t kh = 0; kh < p.kernel[ROW]; kh++)
        for (int64_t kw = 0; kw < p.kernel[COLUMN]; kw++)
            for (int64_t ci = 0; ci < p.in_channels; ci++)
                *offsets++ = ci * in.channel + kh * p.dilation[ROW] * in.row + kw * p.dilation[COLUMN] * in.column;
}

}  // namespace
