// How the backward pass sees x and dx: as patches. A patch is what one conv position reads, K x K x C_in elements; it is
// made of runs of consecutive floats, so that lanes run along (kernel column, channel).
#pragma once

#include <cstring>

#include "input.h"
#include "transpose.h"

namespace {

enum class Form {
    IN_PLACE,  // the tensor itself: channels innermost, a multiple of L of them, no padding read
    PIXELS,    // a copy: rows of pixels, zeros for the padding
    ROWS,      // for each input row and conv column, the kernel row's elements side by side
    WHOLE,     // for each conv position, the whole patch side by side
};

// The patch of conv position (i, j) begins at i * row + j * column; element q of run r, at run_offset(r) + q, is
// channel q % pixel of tap r * taps_in_run + q / pixel.
struct PatchLayout {
    Form form;
    int64_t row, column, pixel, taps_in_run, runs;
    int64_t line;      // floats from one input row to the next (in WHOLE: from one conv row to the next)
    int64_t tap_step;  // floats between taps of neighbouring columns, where each is a run

    int64_t length() const { return taps_in_run * pixel; }
    int64_t run_vectors() const { return vectors(length()); }
    int64_t run_offset(const Problem& p, int64_t run) const {
        const int64_t tap = run * taps_in_run;
        return tap / p.kernel[COLUMN] * p.dilation[ROW] * line + tap % p.kernel[COLUMN] * tap_step;
    }
};

// The part of a pass that shares one copy of x and dx: some pooled rows of one group of one image.
struct Band {
    Range rows;         // pooled
    Range conv[2];      // conv rows and columns that they look at
    Range input[2];     // input rows and columns that those read
    Band(const Problem& p, Range pooled_rows) : rows(pooled_rows) {
        conv[ROW] = conv_range(p, ROW, rows);
        conv[COLUMN] = conv_range(p, COLUMN, {0, p.pooled_size[COLUMN]});
        for (int axis : {ROW, COLUMN}) input[axis] = input_range(p, axis, conv[axis]);
    }
};

inline bool in_place(const Problem& p, const int64_t (&stride)[4]) {
    const bool offsets_fit = stride[HEIGHT] < (int64_t{1} << 30) / p.size[ROW];  // winners are located by 32-bit offsets
    return offsets_fit && stride[CHANNEL] == 1 && stride[WIDTH] == p.in_channels && p.groups == 1 && p.in_channels % L == 0 && !reads_padding(p);
}

// Pixels of `pixel` floats in rows `line` floats long; neighbouring columns form one run unless the kernel is dilated.
inline PatchLayout pixel_layout(const Problem& p, Form form, int64_t pixel, int64_t line) {
    const int64_t taps_in_run = p.dilation[COLUMN] == 1 ? p.kernel[COLUMN] : 1;
    return {form, p.stride[ROW] * line, p.stride[COLUMN] * pixel, pixel, taps_in_run, p.taps() / taps_in_run,
            line, p.dilation[COLUMN] * pixel};
}

inline int64_t input_width(const Problem& p) {
    return input_range(p, COLUMN, conv_range(p, COLUMN, {0, p.pooled_size[COLUMN]})).size();
}

// Whether rounding the channels up to a multiple of L wastes no more lanes than leaving the end of a run unused.
inline bool pad_channels(const Problem& p) {
    return p.kernel[COLUMN] * vectors(p.in_channels) * 5 <= vectors(p.kernel[COLUMN] * p.in_channels) * 6;
}

inline PatchLayout x_layout(const Problem& p) {
    if (in_place(p, p.x_stride)) return pixel_layout(p, Form::IN_PLACE, p.in_channels, p.x_stride[HEIGHT]);
    const int64_t row_length = p.kernel[COLUMN] * p.in_channels, whole_length = p.kernel[ROW] * row_length;
    const int64_t columns = conv_range(p, COLUMN, {0, p.pooled_size[COLUMN]}).size();
    // A whole patch a position repeats each element K x K times: only where it is short and saves vectors.
    if (whole_length <= 4 * L && vectors(whole_length) < p.kernel[ROW] * vectors(row_length)) {
        const int64_t column = round_up(whole_length, L);
        return {Form::WHOLE, columns * column, column, p.in_channels, p.taps(), 1, columns * column, 0};
    }
    if (p.dilation[COLUMN] == 1 && pad_channels(p)) {
        const int64_t pixel = round_up(p.in_channels, L);
        return pixel_layout(p, Form::PIXELS, pixel, input_width(p) * pixel);
    }
    // Unfolded rows keep every load aligned: a load across two cache lines costs two.
    const int64_t column = round_up(row_length, L), line = columns * column;
    return {Form::ROWS, p.stride[ROW] * line, column, p.in_channels, p.kernel[COLUMN], p.kernel[ROW], line, 0};
}

inline PatchLayout dx_layout(const Problem& p) {
    if (in_place(p, p.dx_stride)) return pixel_layout(p, Form::IN_PLACE, p.in_channels, p.dx_stride[HEIGHT]);
    const int64_t pixel = pad_channels(p) ? round_up(p.in_channels, L) : p.in_channels;
    return pixel_layout(p, Form::PIXELS, pixel, input_width(p) * pixel);
}

// Input rows that `pooled` pooled rows read at most.
inline int64_t input_rows(const Problem& p, int64_t pooled) {
    const int64_t conv = std::min((pooled - 1) * p.pool_stride[ROW] + p.window_span(ROW), p.conv_size[ROW]);
    return (conv - 1) * p.stride[ROW] + p.kernel_span(ROW);
}

// Floats that a band of `rows` pooled rows and `columns` pooled columns spans in a layout.
inline int64_t span(const Problem& p, const PatchLayout& layout, int64_t rows, int64_t columns) {
    const int64_t counts[2] = {rows, columns};
    int64_t conv[2], input[2];
    for (int axis : {ROW, COLUMN}) {
        conv[axis] = std::min((counts[axis] - 1) * p.pool_stride[axis] + p.window_span(axis), p.conv_size[axis]);
        input[axis] = (conv[axis] - 1) * p.stride[axis] + p.kernel_span(axis);
    }
    switch (layout.form) {
        case Form::WHOLE: return conv[ROW] * conv[COLUMN] * layout.column;
        case Form::ROWS: return input[ROW] * conv[COLUMN] * layout.column;
        default: return input[ROW] * input[COLUMN] * layout.pixel;
    }
}

// Columns `columns` of row `row` of one group of x as pixels of `pixel` floats, zeros in the padding and beyond C_in.
inline void copy_pixels(const Problem& p, const float* group, int64_t row, Range columns, int64_t pixel, float* to) {
    const int64_t first = std::max<int64_t>(columns.begin, 0), last = std::min(columns.end, p.size[COLUMN]);
    if (row < 0 || row >= p.size[ROW] || first >= last) {
        std::fill_n(to, columns.size() * pixel, 0.f);
        return;
    }
    const float* from = group + row * p.x_stride[HEIGHT] + first * p.x_stride[WIDTH];
    std::fill_n(to, (first - columns.begin) * pixel, 0.f);
    std::fill_n(to + (last - columns.begin) * pixel, (columns.end - last) * pixel, 0.f);
    to += (first - columns.begin) * pixel;
    const int64_t count = last - first, channels = p.in_channels;
    if (pixel == channels && (channels == 1 || p.x_stride[CHANNEL] == 1) && p.x_stride[WIDTH] == channels) {
        memcpy(to, from, sizeof(float) * count * channels);
        return;
    }
    if (pixel != channels) std::fill_n(to, count * pixel, 0.f);
    if (p.x_stride[WIDTH] == 1) {
        transpose_matrix(from, p.x_stride[CHANNEL], channels, count, to, pixel);
    } else {
        for (int64_t k = 0; k < count; k++)
            for (int64_t c = 0; c < channels; c++) to[k * pixel + c] = from[k * p.x_stride[WIDTH] + c * p.x_stride[CHANNEL]];
    }
}

// `count` floats by whole vectors: reads and writes up to L - 1 beyond.
INLINE void copy_loosely(const float* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += L) store(to + i, load(from + i));
}

// The patches of a band, where those of its first conv row and column begin.
inline const float* patches_of(const Problem& p, const PatchLayout& layout, const float* group, const Band& band,
                               Scratch& pixel_memory, Scratch& unfolded_memory) {
    if (layout.form == Form::IN_PLACE)
        return group + band.input[ROW].begin * p.x_stride[HEIGHT] + band.input[COLUMN].begin * p.x_stride[WIDTH];
    const int64_t line = band.input[COLUMN].size() * layout.pixel, rows = band.input[ROW].size();
    float* pixels = pixel_memory.get<float>(rows * line + 2 * L);
    for (int64_t r = 0; r < rows; r++)
        copy_pixels(p, group, band.input[ROW].begin + r, band.input[COLUMN], layout.pixel, pixels + r * line);
    std::fill_n(pixels + rows * line, 2 * L, 0.f);  // read by copy_loosely; stale bits there could be slow denormals
    if (layout.form == Form::PIXELS) return pixels;

    const bool whole = layout.form == Form::WHOLE;
    const int64_t lines = whole ? band.conv[ROW].size() : rows;
    const int64_t taps_high = whole ? p.kernel[ROW] : 1, input_step = whole ? p.stride[ROW] : 1;
    const int64_t piece = p.dilation[COLUMN] == 1 ? p.kernel[COLUMN] * layout.pixel : layout.pixel;  // consecutive in x
    const int64_t pieces = p.kernel[COLUMN] * layout.pixel / piece;
    float* unfolded = unfolded_memory.get<float>(lines * layout.line + taps_high * p.kernel[COLUMN] * layout.pixel + 2 * L);
    const int64_t down = p.dilation[ROW] * line, right = p.stride[COLUMN] * layout.pixel, apart = p.dilation[COLUMN] * layout.pixel;
    for (int64_t r = 0; r < lines; r++) {
        const float* from = pixels + r * input_step * line;
        float* patch = unfolded + r * layout.line;
        for (int64_t j = 0; j < band.conv[COLUMN].size(); j++, from += right, patch += layout.column) {
            float* to = patch;  // what is written beyond a patch, the next one overwrites
            for (int64_t kh = 0; kh < taps_high; kh++)
                for (int64_t i = 0; i < pieces; i++, to += piece) copy_loosely(from + kh * down + i * apart, piece, to);
        }
    }
    return unfolded;
}

// The rows of dx that bands still add to. Bands come in order; a row goes to dx once no later band reaches it.
class GradientRows {
   public:
    // `height`: the most pooled rows of a band.
    GradientRows(const Problem& p, const PatchLayout& layout, float* group, int64_t height, Scratch& memory)
        : p_(p), layout_(layout), group_(group), height_(height), memory_(memory) {
        if (layout.form == Form::IN_PLACE)
            for (int64_t r = 0; r < p.size[ROW]; r++) std::fill_n(group + r * p.dx_stride[HEIGHT], p.size[COLUMN] * p.in_channels, 0.f);
    }

    // Zeros, or what earlier bands added; where the patches of the band's first conv row and column begin.
    float* open(const Band& band) {
        if (layout_.form == Form::IN_PLACE)
            return group_ + band.input[ROW].begin * p_.dx_stride[HEIGHT] + band.input[COLUMN].begin * p_.dx_stride[WIDTH];
        if (!rows_) {
            rows_ = memory_.get<float>(input_rows(p_, height_) * layout_.line + 2 * L);
            held_ = {band.input[ROW].begin, band.input[ROW].begin};
        }
        const int64_t carried = std::max<int64_t>(0, held_.end - band.input[ROW].begin);
        const int64_t dropped = band.input[ROW].begin - held_.begin;
        if (carried) memmove(rows_, rows_ + dropped * layout_.line, sizeof(float) * carried * layout_.line);
        std::fill_n(rows_ + carried * layout_.line, (band.input[ROW].size() - carried) * layout_.line + 2 * L, 0.f);
        held_ = band.input[ROW];
        columns_ = band.input[COLUMN];
        return rows_;
    }

    // Write the rows below `end` (of x) that are not written yet.
    void write(int64_t end) {
        if (layout_.form == Form::IN_PLACE) return;
        for (; written_ < std::min(end, p_.size[ROW]); written_++) {
            const bool held = written_ >= held_.begin && written_ < held_.end;
            write_row(group_ + written_ * p_.dx_stride[HEIGHT], held ? rows_ + (written_ - held_.begin) * layout_.line : nullptr);
        }
    }

   private:
    void write_row(float* to, const float* from) const {
        const int64_t first = from ? std::max<int64_t>(columns_.begin, 0) : 0;
        const int64_t last = from ? std::max(first, std::min(columns_.end, p_.size[COLUMN])) : 0;
        if (from) from += (first - columns_.begin) * layout_.pixel;
        if (p_.dx_stride[CHANNEL] == 1 && p_.dx_stride[WIDTH] != 1) {
            for (int64_t k = 0; k < p_.size[COLUMN]; k++) {
                if (k < first || k >= last)
                    std::fill_n(to + k * p_.dx_stride[WIDTH], p_.in_channels, 0.f);
                else
                    memcpy(to + k * p_.dx_stride[WIDTH], from + (k - first) * layout_.pixel, sizeof(float) * p_.in_channels);
            }
            return;
        }
        for (int64_t c = 0; c < p_.in_channels; c++) {
            float* plane = to + c * p_.dx_stride[CHANNEL];
            std::fill_n(plane, first, 0.f);
            std::fill_n(plane + last, p_.size[COLUMN] - last, 0.f);
        }
        if (from) transpose_matrix(from, layout_.pixel, last - first, p_.in_channels, to + first, p_.dx_stride[CHANNEL]);
    }

    const Problem& p_;
    const PatchLayout& layout_;
    float* group_;
    int64_t height_;
    Scratch& memory_;
    float* rows_ = nullptr;
    Range held_ = {0, 0}, columns_ = {0, 0};  // of x, in rows_
    int64_t written_ = 0;
};

}  // namespace
