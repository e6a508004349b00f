// ReLU and max-pool over conv outputs: of a band that a kernel here computed, or of torch's whole convolution.
#pragma once

#include "output.h"

namespace {

// Rows of the conv output from row `first`, the channels of a position side by side.
struct ConvRows {
    const float* data;
    int64_t first, pixel;  // pixel: floats between neighbouring positions
    const float* at(const Problem& p, int64_t row, int64_t column) const {
        return data + ((row - first) * p.conv_size[COLUMN] + column) * pixel;
    }
};

// The windows of pooled rows `rows`, VECTORS * L channels from `channel`; `z` begins at that channel.
template <int VECTORS>
void pool_rows(const Problem& p, const ConvRows& z, const OutputBand& out, Range rows, int64_t channel) {
    int lanes[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) lanes[v] = (int)std::clamp<int64_t>(p.out_channels - channel - v * L, 0, L);
    int64_t window = 0;
    for (int64_t row = rows.begin; row < rows.end; row++) {
        for (int64_t column = 0; column < p.pooled_size[COLUMN]; column++, window++) {
            Vec best[VECTORS];
            IVec winner[VECTORS] = {};
            UNROLL for (int v = 0; v < VECTORS; v++) best[v] = splat(-__builtin_inff());
            int64_t i = p.window_start(ROW, row);
            for (int32_t offset = 0; offset < p.window(); i += p.pool_dilation[ROW]) {
                int64_t j = p.window_start(COLUMN, column);
                for (int64_t k = 0; k < p.pool_kernel[COLUMN]; k++, offset++, j += p.pool_dilation[COLUMN]) {
                    if (i < 0 || i >= p.conv_size[ROW] || j < 0 || j >= p.conv_size[COLUMN]) continue;
                    const float* from = z.at(p, i, j);
                    UNROLL for (int v = 0; v < VECTORS; v++) {
                        const Vec value = load_first(from + v * L, lanes[v]);
                        const Mask better = takes_maximum(value, best[v]);
                        best[v] = select(better, value, best[v]);
                        winner[v] = select(better, splat(offset), winner[v]);
                    }
                }
            }
            UNROLL for (int v = 0; v < VECTORS; v++)
                write_window(out.y(window, channel + v * L), out.code(window, channel + v * L), best[v], winner[v], lanes[v]);
        }
    }
}

// The same for 2x2 windows that lie in the conv output.
template <int VECTORS>
void pool_plain_rows(const Problem& p, const ConvRows& z, const OutputBand& out, Range rows, int64_t channel) {
    int lanes[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) lanes[v] = (int)std::clamp<int64_t>(p.out_channels - channel - v * L, 0, L);
    int64_t window = 0;
    for (int64_t row = rows.begin; row < rows.end; row++) {
        for (int64_t column = 0; column < p.pooled_size[COLUMN]; column++, window++) {
            const float *above = z.at(p, 2 * row, 2 * column), *below = z.at(p, 2 * row + 1, 2 * column);
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const auto value = [&](const float* from) { return load_first(from + v * L, lanes[v]); };
                const Vec four[4] = {value(above), value(above + z.pixel), value(below), value(below + z.pixel)};
                write_window<true>(out.y(window, channel + v * L), out.code(window, channel + v * L), four, lanes[v]);
            }
        }
    }
}

// y and code of the whole conv output z, channels innermost.
inline Kernel pool(const Problem& p, const float* z, float* y, uint8_t* code) {
    const int64_t pixel = p.groups * p.out_channels, image_size = p.conv_size[ROW] * p.conv_size[COLUMN] * pixel;
    const Bands bands(p, p.batch * p.groups, p.pool_stride[ROW] * p.conv_size[COLUMN] * p.out_channels);
#pragma omp parallel for schedule(static) num_threads((int)p.threads) if (p.threads > 1)
    for (int64_t unit = 0; unit < p.batch * p.groups * bands.count; unit++) {
        static thread_local Scratch tile;
        const int64_t image = unit / bands.count / p.groups, group = unit / bands.count % p.groups;
        const Range rows = bands.rows(unit % bands.count);
        const OutputBand out(p, y, code, image, group, rows, tile);
        for (int64_t c = 0; c < p.out_channels; c += CHANNEL_VECTORS * L) {
            const ConvRows from{z + image * image_size + group * p.out_channels + c, 0, pixel};
            const auto rows_kernel = p.plain_pool() ? pool_plain_rows<CHANNEL_VECTORS> : pool_rows<CHANNEL_VECTORS>;
            rows_kernel(p, from, out, rows, c);
        }
        out.finish();
    }
    return Kernel::pool;
}

}  // namespace
