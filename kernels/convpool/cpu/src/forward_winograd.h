// 3x3 kernels by Winograd's F(2x2, 3x3): 16 products where the definition takes 36, and one tile of outputs is one window.
// Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks (2015), section 4.1.
//
// A block of windows goes through three stages that stay in the second-level cache: input transform (lanes are input
// channels), 16 matrix products (lanes are output channels), output transform with bias, ReLU and maximum.
#pragma once

#include "output.h"
#include "patches.h"

namespace {

constexpr int64_t WINOGRAD_WINDOWS = 32;  // a block: 16 * 32 * (C_in + C_out) floats, 256 KB for 64 and 64 channels
constexpr int64_t WINOGRAD_HEAVY = 1 << 17;  // transformed weights: 512 KB
constexpr int PRODUCT_WINDOWS = REGISTERS == 32 ? 8 : 4;  // of a register tile, times CHANNEL_VECTORS

// G w G^T for L output channels.  w: [9], u: 16 results, `step` apart
INLINE void transform_weights(const Vec (&w)[9], float* u, int64_t step) {
    Vec rows[4][3];
    UNROLL for (int j = 0; j < 3; j++) {
        const Vec outer = w[j] + w[6 + j];
        rows[0][j] = w[j];
        rows[1][j] = (outer + w[3 + j]) * 0.5f;
        rows[2][j] = (outer - w[3 + j]) * 0.5f;
        rows[3][j] = w[6 + j];
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const Vec outer = rows[i][0] + rows[i][2];
        store(u + (4 * i) * step, rows[i][0]);
        store(u + (4 * i + 1) * step, (outer + rows[i][1]) * 0.5f);
        store(u + (4 * i + 2) * step, (outer - rows[i][1]) * 0.5f);
        store(u + (4 * i + 3) * step, rows[i][2]);
    }
}

// B^T x B for L input channels of one 4x4 patch.  v: 16 results, `step` apart
INLINE void transform_input(const float* x, int64_t line, int64_t pixel, float* v, int64_t step) {
    Vec rows[4][4];
    UNROLL for (int j = 0; j < 4; j++) {
        const Vec a = load(x + j * pixel), b = load(x + line + j * pixel), c = load(x + 2 * line + j * pixel),
                  d = load(x + 3 * line + j * pixel);
        rows[0][j] = a - c, rows[1][j] = b + c, rows[2][j] = c - b, rows[3][j] = b - d;
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const Vec *r = rows[i];
        store(v + (4 * i) * step, r[0] - r[2]);
        store(v + (4 * i + 1) * step, r[1] + r[2]);
        store(v + (4 * i + 2) * step, r[2] - r[1]);
        store(v + (4 * i + 3) * step, r[1] - r[3]);
    }
}

// A^T m A for L output channels of one window: its four conv outputs.
INLINE void transform_output(const float* m, int64_t step, Vec (&z)[4]) {
    Vec top[4], bottom[4];
    UNROLL for (int j = 0; j < 4; j++) {
        const Vec a = load(m + j * step), b = load(m + (4 + j) * step), c = load(m + (8 + j) * step), d = load(m + (12 + j) * step);
        top[j] = a + b + c, bottom[j] = b - c - d;
    }
    z[0] = top[0] + top[1] + top[2], z[1] = top[1] - top[2] - top[3];
    z[2] = bottom[0] + bottom[1] + bottom[2], z[3] = bottom[1] - bottom[2] - bottom[3];
}

struct WinogradPlan {
    const Problem& p;
    const float *w, *bias;   // the tensors; bias may be null
    PatchLayout layout;      // of x: slabs of L input channels
    int64_t inputs, channels;  // input and output channels, rounded up to vectors
    float* u;                // [16][block of CHANNEL_VECTORS vectors][input channel][lane]
    int64_t u_step() const { return inputs * channels; }
    // A vector more than needed: 16 addresses a power of two apart would share a few lines of the first-level cache.
    int64_t v_step() const { return WINOGRAD_WINDOWS * inputs + L; }
    int64_t m_step() const { return WINOGRAD_WINDOWS * channels + L; }
    int64_t weight_offset(int64_t ci, int tap) const {
        return ci * p.w_stride[CHANNEL] + tap / 3 * p.w_stride[HEIGHT] + tap % 3 * p.w_stride[WIDTH];
    }
};

// Transforms the weights of L output channels from `c` on.
inline void winograd_weights(const WinogradPlan& plan, int64_t group, int64_t c, Scratch& memory) {
    const Problem& p = plan.p;
    const int64_t lanes = std::min<int64_t>(L, p.out_channels - c);
    const float* from = plan.w + (group * p.out_channels + c) * p.w_stride[BATCH];
    // Turned, so that what lies i after a channel's first weight stands at [i][lane]. Lane by lane the weights of 32 to 64
    // channels took 15 us, half of the time for one image.
    const int64_t span = plan.weight_offset(p.in_channels - 1, 8) + 1;
    float* turned = memory.get<float>(span * L);
    if (lanes < L) std::fill_n(turned, span * L, 0.f);
    transpose_matrix(from, p.w_stride[BATCH], lanes, span, turned, L);
    const int64_t block = c / (CHANNEL_VECTORS * L) * (CHANNEL_VECTORS * L);
    const int64_t width = std::min<int64_t>(CHANNEL_VECTORS * L, plan.channels - block);
    float* u = plan.u + group * 16 * plan.u_step() + block * plan.inputs + (c - block);
    for (int64_t ci = 0; ci < plan.inputs; ci++, u += width) {
        Vec taps[9] = {};
        if (ci < p.in_channels)
            for (int tap = 0; tap < 9; tap++) taps[tap] = load(turned + plan.weight_offset(ci, tap) * L);
        transform_weights(taps, u, plan.u_step());
    }
}

// m[window][lane] = sum over input channels of v[window] * u, for PRODUCT_WINDOWS windows.
template <int VECTORS>
INLINE void winograd_product(const float* v, int64_t pixel, const float* u, float* m, int64_t channels) {
    Vec sums[PRODUCT_WINDOWS][VECTORS] = {};
    for (int64_t ci = 0; ci < pixel; ci++, u += VECTORS * L) {
        Vec weight[VECTORS];
        UNROLL for (int k = 0; k < VECTORS; k++) weight[k] = load(u + k * L);
        UNROLL for (int t = 0; t < PRODUCT_WINDOWS; t++) {
            const float value = v[t * pixel + ci];
            UNROLL for (int k = 0; k < VECTORS; k++) sums[t][k] += weight[k] * value;
        }
    }
    UNROLL for (int t = 0; t < PRODUCT_WINDOWS; t++)
        UNROLL for (int k = 0; k < VECTORS; k++) store(m + t * channels + k * L, sums[t][k]);
}

template <int VECTORS>
void winograd_products(const WinogradPlan& plan, const float* v, const float* u, float* m, int64_t windows) {
    for (int64_t t = 0; t < windows; t += PRODUCT_WINDOWS)
        winograd_product<VECTORS>(v + t * plan.inputs, plan.inputs, u, m + t * plan.channels, plan.channels);
}

// The definition, for a window whose transforms met an infinity or NaN: there inf - inf stands for what a tap never saw.
inline void direct_window(const WinogradPlan& plan, const float* x, int64_t slab, int64_t group, int64_t channel,
                          Vec (&z)[4]) {
    const Problem& p = plan.p;
    const PatchLayout& layout = plan.layout;
    for (int lane = 0; lane < L && channel + lane < p.out_channels; lane++) {
        const float* w = plan.w + (group * p.out_channels + channel + lane) * p.w_stride[BATCH];
        for (int position = 0; position < 4; position++) {
            float sum = 0;
            for (int tap = 0; tap < 9; tap++) {
                const float* from = x + (position / 2 + tap / 3) * layout.line + (position % 2 + tap % 3) * layout.pixel;
                const float* weight = w + tap / 3 * p.w_stride[HEIGHT] + tap % 3 * p.w_stride[WIDTH];
                for (int64_t ci = 0; ci < p.in_channels; ci++) sum += from[ci / L * slab + ci % L] * weight[ci * p.w_stride[CHANNEL]];
            }
            z[position][lane] = sum;
        }
    }
}

// Windows [begin, end) of those that `out` collects: all of a band's, image by image.
inline void winograd_block(const WinogradPlan& plan, const Patches& x, int64_t group, int64_t band_windows, int64_t begin, int64_t end,
                           const OutputBand& out, Ahead& ahead, Scratch& v_memory, Scratch& m_memory) {
    const Problem& p = plan.p;
    const PatchLayout& layout = plan.layout;
    const int64_t count = end - begin, rounded = round_up(count, PRODUCT_WINDOWS), width = p.pooled_size[COLUMN];
    float* v = v_memory.get<float>(16 * plan.v_step());
    float* m = m_memory.get<float>(16 * plan.m_step());
    const float* patch[WINOGRAD_WINDOWS];
    for (int64_t t = 0; t < rounded; t++) {
        const int64_t i = std::min(begin + t, end - 1);  // a block is filled up with its last window
        const int64_t window = i % band_windows;
        patch[t] = x.data + i / band_windows * x.image + window / width * 2 * layout.line + window % width * 2 * layout.pixel;
        for (int64_t c = 0; c < plan.inputs; c += L)
            transform_input(patch[t] + c / L * x.slab, layout.line, layout.pixel, v + t * plan.inputs + c, plan.v_step());
    }
    for (int k = 0; k < 16; k++) {
        ahead.fetch();
        for (int64_t c = 0; c < plan.channels; c += CHANNEL_VECTORS * L) {
            const float* u = plan.u + (group * 16 + k) * plan.u_step() + c * plan.inputs;
            const float* from = v + k * plan.v_step();
            float* to = m + k * plan.m_step() + c;
            plan.channels - c > L ? winograd_products<2>(plan, from, u, to, rounded) : winograd_products<1>(plan, from, u, to, rounded);
        }
    }
    for (int64_t t = 0; t < count; t++) {
        for (int64_t c = 0; c < plan.channels; c += L) {
            Vec z[4];
            transform_output(m + t * plan.channels + c, plan.m_step(), z);
            const int64_t left = p.out_channels - c;
            const Vec bias = plan.bias ? load_first(plan.bias + group * p.out_channels + c, left < L ? (int)left : L) : Vec{};
            const bool finite = mask_bits(is_finite(z[0] + z[1] + z[2] + z[3] + bias)) == (1u << L) - 1;
            if (!finite) direct_window(plan, patch[t], x.slab, group, c, z);
            UNROLL for (int i = 0; i < 4; i++) z[i] += bias;
            finite ? write_window<false>(out.y(begin + t, c), out.code(begin + t, c), z, left)
                   : write_window<true>(out.y(begin + t, c), out.code(begin + t, c), z, left);
        }
    }
}

inline Kernel forward_winograd(const Problem& p, const float* x, const float* w, const float* bias, float* y, uint8_t* code) {
    static thread_local Scratch u_memory;
    const int64_t inputs = round_up(p.in_channels, L), channels = round_up(p.out_channels, L);
    const bool copied = p.x_stride[CHANNEL] != 1 || p.in_channels != inputs || reads_padding(p);
    const PatchLayout layout = copied ? pixel_layout(p, Form::PIXELS, L, L, input_width(p) * L)
                                      : pixel_layout(p, Form::IN_PLACE, L, p.x_stride[WIDTH], p.x_stride[HEIGHT]);
    float* u = u_memory.get<float>(p.groups * 16 * inputs * channels);
    const WinogradPlan plan{p, w, bias, layout, inputs, channels, u};
    const Bands bands(p, p.batch * p.groups, copied ? 2 * layout.line * inputs / L : 0);
    // Images of few windows share blocks: 25 windows would fill 25 of 32 places.
    const int64_t filling = 8 * WINOGRAD_WINDOWS / p.pooled() + 1;
    // Four units a thread even out their loads. But each unit reads all weights: those that overflow a core's cache are
    // read once by each thread.
    const bool heavy = 16 * inputs * channels > WINOGRAD_HEAVY;
    const int64_t share = heavy ? (p.batch - 1) / p.threads + 1 : p.batch / (4 * p.threads);
    const int64_t together = bands.count > 1 ? 1 : std::clamp<int64_t>(share, 1, filling);
    const int64_t parts = (p.batch - 1) / together + 1;
#pragma omp parallel num_threads((int)p.threads) if (p.threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.groups * channels / L; i++) {
            static thread_local Scratch turned;
            winograd_weights(plan, i / (channels / L), i % (channels / L) * L, turned);
        }
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < parts * p.groups * bands.count; unit++) {
            static thread_local Scratch pixels, unfolded, tile, v, m;
            const int64_t part = unit / bands.count / p.groups, group = unit / bands.count % p.groups;
            const Range images = part_of({0, p.batch}, part, parts);
            const Band band(p, bands.rows(unit % bands.count));
            const Patches patches = patches_of(p, layout, group_of(p, x, images.begin, group), images.size(), band, pixels, unfolded);
            const OutputBand out(p, y, code, images, group, band.rows, tile);
            const int64_t windows = band.rows.size() * p.pooled_size[COLUMN], all = images.size() * windows;
            Ahead ahead = next_images(p, x, images, band, 16 * ((all - 1) / WINOGRAD_WINDOWS + 1));
            for (int64_t begin = 0; begin < all; begin += WINOGRAD_WINDOWS)
                winograd_block(plan, patches, group, windows, begin, std::min(begin + WINOGRAD_WINDOWS, all), out, ahead, v, m);
            out.finish();
        }
    }
    return Kernel::forward_winograd;
}

}  // namespace
