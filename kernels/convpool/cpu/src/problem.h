// What Python passes: one struct of int64 (mirrored by `Problem` in native.py), and sizes that follow from it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace {

constexpr uint8_t DEAD = 255;  // no gradient flows through this pooled output
enum { ROW = 0, COLUMN = 1 };
enum { BATCH = 0, CHANNEL = 1, HEIGHT = 2, WIDTH = 3 };

// Each kernel that Python can ask for, by the name of its function, which returns it: what ran is told by what ran.
#define EACH_KERNEL(X) X(forward_direct) X(forward_images) X(forward_winograd) X(pool) X(backward) X(backward_few) \
    X(patch_moments)
#define NAMED(name) name,
enum class Kernel : int64_t { EACH_KERNEL(NAMED) count };
#undef NAMED

struct Problem {
    int64_t batch, groups;
    int64_t in_channels, out_channels;  // of one group
    int64_t size[2], conv_size[2], pooled_size[2];
    int64_t kernel[2], stride[2], padding[2], dilation[2];  // padding: top and left
    int64_t pool_kernel[2], pool_stride[2], pool_padding[2], pool_dilation[2];
    int64_t x_stride[4], w_stride[4], y_stride[4], dx_stride[4], dw_stride[4];  // in elements; code and dy are laid out as y
    int64_t threads;
    Kernel chosen;  // in Python, by kernels.py

    int64_t taps() const { return kernel[ROW] * kernel[COLUMN]; }
    int64_t reduction() const { return in_channels * taps(); }
    int64_t window() const { return pool_kernel[ROW] * pool_kernel[COLUMN]; }
    int64_t pooled() const { return pooled_size[ROW] * pooled_size[COLUMN]; }

    // First conv row (or column) that window i looks at; negative inside the pool padding.
    int64_t window_start(int axis, int64_t i) const { return i * pool_stride[axis] - pool_padding[axis]; }
    int64_t window_span(int axis) const { return (pool_kernel[axis] - 1) * pool_dilation[axis] + 1; }
    int64_t kernel_span(int axis) const { return (kernel[axis] - 1) * dilation[axis] + 1; }

    // The 2x2 window that every kernel with pooling in registers is written for; all its positions lie in the conv output.
    bool plain_pool() const {
        for (int axis : {ROW, COLUMN})
            if (pool_kernel[axis] != 2 || pool_stride[axis] != 2 || pool_padding[axis] != 0 || pool_dilation[axis] != 1 ||
                pooled_size[axis] * 2 > conv_size[axis])
                return false;
        return true;
    }
};

struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// One of `parts` parts of nearly equal sizes.
inline Range part_of(Range whole, int64_t part, int64_t parts) {
    return {whole.begin + part * whole.size() / parts, whole.begin + (part + 1) * whole.size() / parts};
}

// Conv rows (columns) that pooled rows [begin, end) look at, clipped to the conv output.
inline Range conv_range(const Problem& p, int axis, Range pooled) {
    return {std::max<int64_t>(p.window_start(axis, pooled.begin), 0),
            std::min(p.window_start(axis, pooled.end - 1) + p.window_span(axis), p.conv_size[axis])};
}

// Input rows (columns) that conv rows [begin, end) read, in coordinates of x: they reach into the padding.
inline Range input_range(const Problem& p, int axis, Range conv) {
    return {conv.begin * p.stride[axis] - p.padding[axis],
            (conv.end - 1) * p.stride[axis] - p.padding[axis] + p.kernel_span(axis)};
}

// A forward pass cuts each image into bands of pooled rows: so many that all threads have as much work, no more, for each band
// costs, but so small that what a band holds beside its result (`row_floats` a pooled row) stays in a cache of 512 KB.
struct Bands {
    int64_t pooled_rows, height, count;

    // `images`: how many images, or groups of images, are worked on apart.
    Bands(const Problem& p, int64_t images, int64_t row_floats) : pooled_rows(p.pooled_size[ROW]) {
        const int64_t wanted = images < 4 * p.threads ? p.threads / std::gcd(p.threads, images) : 1;
        const int64_t by_threads = (pooled_rows - 1) / std::min(wanted, pooled_rows) + 1;
        const int64_t by_cache = std::max<int64_t>(1, (512 << 10) / 4 / std::max<int64_t>(1, row_floats));
        height = std::min(by_threads, by_cache);
        count = (pooled_rows - 1) / height + 1;
    }
    Range rows(int64_t i) const { return {i * height, std::min((i + 1) * height, pooled_rows)}; }
};

}  // namespace
