// How x and dx are seen: as patches. A patch is what one conv position reads, K x K x channels elements; it is made of
// runs of consecutive floats, so that lanes run along (kernel column, channel).
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
// channel q % pixel of tap r * taps_in_run + q / pixel. Input channels come in slabs of at most L, each with patches of its
// own: in the first-level cache one slab of many windows serves better than all channels of few, because a tile's sums
// are loaded and stored once for all windows there.
struct PatchLayout {
    Form form;
    int64_t channels;  // of a slab
    int64_t row, column, pixel, taps_in_run, runs;
    int64_t line;      // floats from one input row to the next (in WHOLE: from one conv row to the next)
    int64_t tap_step;  // floats between taps of neighbouring columns, where each is a run

    int64_t slabs(const Problem& p) const { return (p.in_channels - 1) / channels + 1; }
    int64_t length() const { return taps_in_run * pixel; }
    int64_t run_vectors() const { return vectors(length()); }
    int64_t run_offset(const Problem& p, int64_t run) const {
        const int64_t tap = run * taps_in_run;
        return tap / p.kernel[COLUMN] * p.dilation[ROW] * line + tap % p.kernel[COLUMN] * tap_step;
    }
};

// The part of a pass that shares one copy of x and dx: some pooled rows of one group of one image or, where a band has all
// rows, of several images.
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

// Pixels of `pixel` floats in rows `line` floats long; neighbouring columns form one run unless the kernel is dilated.
inline PatchLayout pixel_layout(const Problem& p, Form form, int64_t channels, int64_t pixel, int64_t line) {
    const int64_t taps_in_run = p.dilation[COLUMN] == 1 ? p.kernel[COLUMN] : 1;
    return {form, channels, p.stride[ROW] * line, p.stride[COLUMN] * pixel, pixel, taps_in_run, p.taps() / taps_in_run,
            line, p.dilation[COLUMN] * pixel};
}

inline int64_t input_width(const Problem& p) {
    return input_range(p, COLUMN, conv_range(p, COLUMN, {0, p.pooled_size[COLUMN]})).size();
}

// Input channels of a slab: as few slabs as vectors, of nearly equal sizes.
inline int64_t slab_channels(const Problem& p) { return (p.in_channels - 1) / vectors(p.in_channels) + 1; }

// Whether rounding a slab's channels up to L wastes no more lanes than leaving the end of a run unused.
inline bool pad_channels(const Problem& p) {
    return p.kernel[COLUMN] * 5 <= vectors(p.kernel[COLUMN] * slab_channels(p)) * 6;
}

// Whether patches are read where x stands: pixels of one or two whole vectors of channels, none in the padding. Times of a
// backward pass, ratio to that by slabs: 16 channels 0.96, 32 channels 0.96 to 1.01, 48 channels 1.00, 64 and 128 1.03.
inline bool reads_in_place(const Problem& p) {
    const bool whole_vectors = p.in_channels == L || p.in_channels == 2 * L;
    const int64_t last = (p.batch - 1) * p.x_stride[BATCH] + (p.size[ROW] - 1) * p.x_stride[HEIGHT] + p.size[COLUMN] * p.in_channels;
    if (last > INT32_MAX) return false;  // lists hold offsets of 32 bits; a copy of some images has none so large
    return p.groups == 1 && whole_vectors && p.x_stride[CHANNEL] == 1 && p.x_stride[WIDTH] == p.in_channels && !reads_padding(p);
}

inline PatchLayout x_layout(const Problem& p) {
    if (reads_in_place(p)) return pixel_layout(p, Form::IN_PLACE, p.in_channels, p.in_channels, p.x_stride[HEIGHT]);
    const int64_t channels = slab_channels(p), row_length = p.kernel[COLUMN] * channels, whole_length = p.kernel[ROW] * row_length;
    const int64_t columns = conv_range(p, COLUMN, {0, p.pooled_size[COLUMN]}).size();
    // A whole patch a position repeats each element K x K times: only where it is short and saves vectors.
    if (whole_length <= 4 * L && vectors(whole_length) < p.kernel[ROW] * vectors(row_length)) {
        const int64_t column = round_up(whole_length, L);
        return {Form::WHOLE, channels, columns * column, column, channels, p.taps(), 1, columns * column, 0};
    }
    if (p.dilation[COLUMN] == 1 && pad_channels(p)) return pixel_layout(p, Form::PIXELS, channels, L, input_width(p) * L);
    // Unfolded rows keep every load aligned: a load across two cache lines costs two.
    const int64_t column = round_up(row_length, L), line = columns * column;
    return {Form::ROWS, channels, p.stride[ROW] * line, column, channels, p.kernel[COLUMN], p.kernel[ROW], line, 0};
}

inline PatchLayout dx_layout(const Problem& p) {
    const int64_t channels = slab_channels(p), pixel = pad_channels(p) ? L : channels;
    return pixel_layout(p, Form::PIXELS, channels, pixel, input_width(p) * pixel);
}

// Input rows that `pooled` pooled rows read at most.
inline int64_t input_rows(const Problem& p, int64_t pooled) {
    const int64_t conv = std::min((pooled - 1) * p.pool_stride[ROW] + p.window_span(ROW), p.conv_size[ROW]);
    return (conv - 1) * p.stride[ROW] + p.kernel_span(ROW);
}

// Floats that `rows` pooled rows and `columns` pooled columns of an image span in one slab of a layout.
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

// `count` neighbouring columns of `channels` channels from `x` on, as pixels of `pixel` floats; zeros beyond the channels.
inline void copy_pixels(const Problem& p, const float* x, int64_t channels, int64_t count, int64_t pixel, float* to) {
    const bool consecutive = channels == 1 || p.x_stride[CHANNEL] == 1;
    if (consecutive && pixel == L) {
        for (int64_t k = 0; k < count; k++) store(to + k * L, load_first(x + k * p.x_stride[WIDTH], (int)channels));
    } else if (consecutive && pixel == channels && p.x_stride[WIDTH] == channels) {
        memcpy(to, x, sizeof(float) * count * channels);
    } else {
        if (pixel != channels) std::fill_n(to, count * pixel, 0.f);
        if (p.x_stride[WIDTH] == 1) {
            transpose_matrix(x, p.x_stride[CHANNEL], channels, count, to, pixel);
        } else {
            for (int64_t k = 0; k < count; k++)
                for (int64_t c = 0; c < channels; c++) to[k * pixel + c] = x[k * p.x_stride[WIDTH] + c * p.x_stride[CHANNEL]];
        }
    }
}

// The same for columns `columns` of row `row`, with zeros in the padding.
inline void copy_padded_pixels(const Problem& p, const float* x, int64_t channels, int64_t row, Range columns, int64_t pixel,
                               float* to) {
    const int64_t first = std::max<int64_t>(columns.begin, 0), last = std::min(columns.end, p.size[COLUMN]);
    if (row < 0 || row >= p.size[ROW] || first >= last) {
        std::fill_n(to, columns.size() * pixel, 0.f);
        return;
    }
    std::fill_n(to, (first - columns.begin) * pixel, 0.f);
    const float* from = x + row * p.x_stride[HEIGHT] + first * p.x_stride[WIDTH];
    copy_pixels(p, from, channels, last - first, pixel, to + (first - columns.begin) * pixel);
    std::fill_n(to + (last - columns.begin) * pixel, (columns.end - last) * pixel, 0.f);
}

// Whether these columns of a channel's neighbouring rows follow one another in memory: they are then transposed as one row.
inline bool whole_rows(const Problem& p, Range columns, const int64_t (&stride)[4]) {
    return stride[WIDTH] == 1 && columns.begin == 0 && columns.end == p.size[COLUMN] && stride[HEIGHT] == p.size[COLUMN];
}

// `count` floats by whole vectors: reads and writes up to L - 1 beyond.
INLINE void copy_loosely(const float* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += L) store(to + i, load(from + i));
}

// unfold for kernel rows of so many vectors, consecutive in x; the loops for any patch made a backward pass a tenth slower.
template <int VECTORS>
void unfold_rows(const Problem& p, const PatchLayout& layout, const Band& band, const float* pixels, float* to) {
    const int64_t line = band.input[COLUMN].size() * layout.pixel, right = p.stride[COLUMN] * layout.pixel;
    for (int64_t r = 0; r < band.input[ROW].size(); r++) {
        const float* from = pixels + r * line;
        for (int64_t j = 0; j < band.conv[COLUMN].size(); j++, from += right, to += VECTORS * L)
            UNROLL for (int v = 0; v < VECTORS; v++) store(to + v * L, load(from + v * L));
    }
}

// The patches of a slab of an image, each kernel row or all of them side by side, from its pixels.
inline void unfold(const Problem& p, const PatchLayout& layout, const Band& band, const float* pixels, float* to) {
    if (layout.form == Form::ROWS && p.dilation[COLUMN] == 1 && layout.column <= 2 * L)
        return (layout.column == L ? unfold_rows<1> : unfold_rows<2>)(p, layout, band, pixels, to);
    const bool whole = layout.form == Form::WHOLE;
    const int64_t line = band.input[COLUMN].size() * layout.pixel;
    const int64_t lines = whole ? band.conv[ROW].size() : band.input[ROW].size();
    const int64_t taps_high = whole ? p.kernel[ROW] : 1, input_step = whole ? p.stride[ROW] : 1;
    const int64_t piece = p.dilation[COLUMN] == 1 ? p.kernel[COLUMN] * layout.pixel : layout.pixel;  // consecutive in x
    const int64_t pieces = p.kernel[COLUMN] * layout.pixel / piece;
    const int64_t down = p.dilation[ROW] * line, right = p.stride[COLUMN] * layout.pixel, apart = p.dilation[COLUMN] * layout.pixel;
    for (int64_t r = 0; r < lines; r++) {
        const float* from = pixels + r * input_step * line;
        for (int64_t j = 0; j < band.conv[COLUMN].size(); j++, from += right, to += layout.column) {
            float* patch = to;  // what is written beyond a patch, the next one overwrites
            for (int64_t kh = 0; kh < taps_high; kh++)
                for (int64_t i = 0; i < pieces; i++, patch += piece) copy_loosely(from + kh * down + i * apart, piece, patch);
        }
    }
}

// The patches of a band: where those of its first conv row and column begin.
struct Patches {
    const float* data;
    int64_t slab, image;  // floats from one to the next
};

inline Patches patches_of(const Problem& p, const PatchLayout& layout, const float* group, int64_t images, const Band& band,
                          Scratch& pixel_memory, Scratch& unfolded_memory) {
    const Range rows = band.input[ROW], columns = band.input[COLUMN];
    if (layout.form == Form::IN_PLACE)
        return {group + rows.begin * p.x_stride[HEIGHT] + columns.begin * p.x_stride[WIDTH], layout.channels, p.x_stride[BATCH]};
    const bool unfolded = layout.form != Form::PIXELS;
    const bool whole = whole_rows(p, columns, p.x_stride) && rows.begin >= 0 && rows.end <= p.size[ROW];
    const int64_t slabs = layout.slabs(p), pixels_size = rows.size() * columns.size() * layout.pixel;
    const int64_t lines = layout.form == Form::WHOLE ? band.conv[ROW].size() : rows.size();
    const int64_t size = unfolded ? lines * layout.line : pixels_size;
    float* pixels = pixel_memory.get<float>((unfolded ? 1 : images) * slabs * pixels_size + 2 * L);
    float* to = unfolded ? unfolded_memory.get<float>(slabs * images * size + p.taps() * layout.pixel + 2 * L) : pixels;
    if (unfolded) std::fill_n(pixels + slabs * pixels_size, 2 * L, 0.f);  // read by copy_loosely; stale bits there could be slow denormals
    for (int64_t image = 0; image < images; image++) {
        float* image_pixels = unfolded ? pixels : pixels + image * slabs * pixels_size;
        for (int64_t r = 0; r < (whole ? 1 : rows.size()); r++) {
            for (int64_t slab = 0; slab < slabs; slab++) {
                const int64_t first = slab * layout.channels, channels = std::min(layout.channels, p.in_channels - first);
                const float* x = group + image * p.x_stride[BATCH] + first * p.x_stride[CHANNEL];
                float* row = image_pixels + slab * pixels_size + r * columns.size() * layout.pixel;
                if (whole)
                    copy_pixels(p, x + rows.begin * p.x_stride[HEIGHT], channels, rows.size() * columns.size(), layout.pixel, row);
                else
                    copy_padded_pixels(p, x, channels, rows.begin + r, columns, layout.pixel, row);
            }
        }
        for (int64_t slab = 0; unfolded && slab < slabs; slab++)
            unfold(p, layout, band, pixels + slab * pixels_size, to + (image * slabs + slab) * size);
    }
    return {to, size, slabs * size};
}

// As many images of x as follow those of a band, where bands are whole images.
inline Ahead next_images(const Problem& p, const float* x, Range images, const Band& band, int64_t pieces) {
    const bool whole_images = band.rows.size() == p.pooled_size[ROW] && p.groups == 1;
    const int64_t count = whole_images ? std::min(images.size(), p.batch - images.end) : 0;
    return Ahead(x + images.end * p.x_stride[BATCH], count * p.x_stride[BATCH], pieces);
}

// The rows of dx that bands still add to. Bands come in order; a row goes to dx once no later band reaches it.
class GradientRows {
   public:
    // dx of one group of `images` images; `height`: the most pooled rows of a band.
    GradientRows(const Problem& p, const PatchLayout& layout, float* group, int64_t images, int64_t height, Scratch& memory)
        : p_(p), layout_(layout), group_(group), images_(images), plane_(input_rows(p, height) * layout.line) {
        rows_ = memory.get<float>(layout.slabs(p) * images * plane_ + 2 * L);
        held_.begin = held_.end = Band(p, {0, 1}).input[ROW].begin;
    }

    // Zeros, or what earlier bands added; where the patches of the band's first conv row and column begin.
    void open(const Band& band) {
        const int64_t carried = std::max<int64_t>(0, held_.end - band.input[ROW].begin) * layout_.line;
        const int64_t dropped = (band.input[ROW].begin - held_.begin) * layout_.line;
        for (int64_t i = 0; i < layout_.slabs(p_) * images_; i++) {
            float* plane = rows_ + i * plane_;
            if (carried) memmove(plane, plane + dropped, sizeof(float) * carried);
            std::fill_n(plane + carried, band.input[ROW].size() * layout_.line - carried, 0.f);
        }
        held_ = band.input[ROW];
        columns_ = band.input[COLUMN];
    }
    float* patches(int64_t slab, int64_t image) const { return rows_ + (slab * images_ + image) * plane_; }

    // Write the rows below `end` (of x) that are not written yet.
    void write(int64_t end) {
        end = std::min(end, p_.size[ROW]);
        const bool at_once = whole_rows(p_, columns_, p_.dx_stride) && written_ >= held_.begin && end <= held_.end;
        const int64_t step = at_once ? end - written_ : 1;
        for (int64_t image = 0; image < images_; image++) {
            float* dx = group_ + image * p_.dx_stride[BATCH];
            for (int64_t r = written_; r < end; r += step) {
                const bool held = r >= held_.begin && r < held_.end;
                for (int64_t slab = 0; slab < layout_.slabs(p_); slab++) {
                    const int64_t first = slab * layout_.channels, channels = std::min(layout_.channels, p_.in_channels - first);
                    write_columns(dx + r * p_.dx_stride[HEIGHT] + first * p_.dx_stride[CHANNEL], channels, step * p_.size[COLUMN],
                                  held ? patches(slab, image) + (r - held_.begin) * layout_.line : nullptr,
                                  {columns_.begin, columns_.begin + step * columns_.size()});
                }
            }
        }
        written_ = std::max(written_, end);
    }

   private:
    // `count` columns of dx; columns `held` of them stand at `from`, zeros are written to the others.
    void write_columns(float* to, int64_t channels, int64_t count, const float* from, Range held) const {
        const int64_t first = from ? std::max<int64_t>(held.begin, 0) : 0;
        const int64_t last = from ? std::max(first, std::min(held.end, count)) : 0;
        if (from) from += (first - held.begin) * layout_.pixel;
        if (p_.dx_stride[CHANNEL] == 1 && p_.dx_stride[WIDTH] != 1) {
            const int n = (int)channels;
            for (int64_t k = 0; k < count; k++) {
                const bool there = k >= first && k < last;
                store_first(to + k * p_.dx_stride[WIDTH], there ? load_first(from + (k - first) * layout_.pixel, n) : Vec{}, n);
            }
            return;
        }
        for (int64_t c = 0; first + count - last > 0 && c < channels; c++) {
            float* plane = to + c * p_.dx_stride[CHANNEL];
            std::fill_n(plane, first, 0.f);
            std::fill_n(plane + last, count - last, 0.f);
        }
        if (from) transpose_matrix(from, layout_.pixel, last - first, channels, to + first, p_.dx_stride[CHANNEL]);
    }

    const Problem& p_;
    const PatchLayout& layout_;
    float* group_;
    int64_t images_, plane_;
    float* rows_;
    Range held_, columns_ = {0, 0};  // of x, in rows_
    int64_t written_ = 0;
};

}  // namespace
