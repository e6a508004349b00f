// Mean and scatter of the patches that conv positions read: what a convolution's own mean and variance follow from.
//
// The scatter has K * K entries for patches of K values, but sums over positions repeat each other. Tap t of a kernel reads, at
// position i, pixel i * stride + phase + stride * shift: of one phase of x, a plane, always the same pixels but for the shift. So
// the entry of two taps is the sum of one product of planes, plane_a(u) * plane_b(u + distance), over a rectangle of u that moves
// with the first tap's shift. What all rectangles together cover is cut into zones at their edges; each product is summed once
// in each zone, and an entry adds the zones of its rectangle. Nothing is subtracted: a NaN stays out of sums that do not read it.
//
// Lanes are images; sums are double, whatever the order, of products of floats less a value near their channel's mean.
#pragma once

#include <omp.h>

#include <array>
#include <cmath>
#include <vector>

#include "problem.h"
#include "scratch.h"
#include "simd.h"

namespace {

constexpr int DL = L / 2;  // doubles in a vector
typedef double DVec __attribute__((vector_size(8 * DL)));
typedef int64_t DMask __attribute__((vector_size(8 * DL)));
typedef float HalfVec __attribute__((vector_size(4 * DL)));
typedef int32_t HalfIVec __attribute__((vector_size(4 * DL)));
typedef float LooseHalfVec __attribute__((vector_size(4 * DL), aligned(4), may_alias));

constexpr int64_t MOMENT_BAND_BYTES = (int64_t)L * (80 << 10);  // of planes that are summed at a time: a second-level cache
constexpr int64_t MOMENT_SUMS_BYTES = 64 << 20;                 // of zone sums at most
constexpr int MOMENT_PIECES = 16;                               // that the work is cut into, whatever the number of threads
constexpr int MOMENT_ROWS = 4, MOMENT_RUN = 7, MOMENT_TOTALS = 14;      // of a block; with AVX2 one register is left for the first factor

// One axis: where taps lie in the planes, and the zones.
struct MomentAxis {
    int64_t stride, size, positions, first;  // first: the smallest shift of a tap, at plane coordinate 0
    int64_t reach, step;                     // the largest distance of two taps; that of neighbours in one plane
    std::vector<int64_t> phases;             // of the planes
    std::vector<int64_t> plane, shift;       // of each tap; the shift counted from `first`
    std::vector<int64_t> edges;              // zone z is [edges[z], edges[z + 1])

    MomentAxis(const Problem& p, int axis) : stride(p.stride[axis]), size(p.size[axis]), positions(p.conv_size[axis]) {
        std::vector<int64_t> phase;
        for (int64_t k = 0; k < p.kernel[axis]; k++) {
            const int64_t offset = k * p.dilation[axis] - p.padding[axis];
            const int64_t down = offset >= 0 ? offset / stride : -((stride - 1 - offset) / stride);
            shift.push_back(down);
            phase.push_back(offset - down * stride);
        }
        phases = phase;
        std::sort(phases.begin(), phases.end());
        phases.erase(std::unique(phases.begin(), phases.end()), phases.end());
        for (int64_t r : phase) plane.push_back(std::lower_bound(phases.begin(), phases.end(), r) - phases.begin());
        first = *std::min_element(shift.begin(), shift.end());
        reach = *std::max_element(shift.begin(), shift.end()) - first;
        step = p.dilation[axis] / std::gcd(p.dilation[axis], stride);
        for (int64_t& q : shift) {
            q -= first;
            edges.push_back(q);
            edges.push_back(q + positions);
        }
        std::sort(edges.begin(), edges.end());
        edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
    }
    int64_t extent() const { return reach + positions; }  // plane coordinates that some tap reads
    int64_t zones() const { return (int64_t)edges.size() - 1; }
    Range zone(int64_t z) const { return {edges[z], edges[z + 1]}; }
    Range zones_of(int64_t tap) const {  // that make up the tap's rectangle
        const auto at = [&](int64_t edge) { return std::lower_bound(edges.begin(), edges.end(), edge) - edges.begin(); };
        return {at(shift[tap]), at(shift[tap] + positions)};
    }
    // Distances from taps of plane a to taps of plane b, ascending.
    std::vector<int64_t> distances(int64_t a, int64_t b) const {
        std::vector<int64_t> found;
        for (size_t t = 0; t < shift.size(); t++)
            for (size_t u = 0; u < shift.size(); u++)
                if (plane[t] == a && plane[u] == b) found.push_back(shift[u] - shift[t]);
        std::sort(found.begin(), found.end());
        found.erase(std::unique(found.begin(), found.end()), found.end());
        return found;
    }
};

// Products of plane a with plane b at `run` distances side by side, whose zone sums begin at `sums`.
struct MomentRun {
    int64_t b, down, right, run, sums;
};

// What is summed, of one group: the same for all groups.
struct MomentPlan {
    const Problem& p;
    MomentAxis rows, columns;
    int64_t phases, planes, width, zones, sums = 0;  // width: of a plane's row with zeros on both sides, in vectors
    std::vector<std::vector<MomentRun>> runs;        // by plane a
    std::vector<int64_t> index;                      // of a product's sums, by both planes and distance; -1: not summed

    explicit MomentPlan(const Problem& problem) : p(problem), rows(problem, ROW), columns(problem, COLUMN) {
        phases = (int64_t)(rows.phases.size() * columns.phases.size());
        planes = p.in_channels * phases;
        width = columns.extent() + 2 * columns.reach;
        zones = rows.zones() * columns.zones();
        index.assign(planes * planes * (rows.reach + 1) * (2 * columns.reach + 1), -1);
        runs.resize(planes);
        for (int64_t a = 0; a < planes; a++) {
            for (int64_t b = 0; b < planes; b++) add(a, b);
            // A block takes runs of one length.
            std::stable_sort(runs[a].begin(), runs[a].end(), [](const auto& x, const auto& y) { return x.run > y.run; });
        }
    }
    int64_t row_phase(int64_t plane) const { return plane % phases / (int64_t)columns.phases.size(); }
    int64_t column_phase(int64_t plane) const { return plane % (int64_t)columns.phases.size(); }
    int64_t& at(int64_t a, int64_t b, int64_t down, int64_t right) {
        return index[((a * planes + b) * (rows.reach + 1) + down) * (2 * columns.reach + 1) + columns.reach + right];
    }
    // Of two factors the upper left one comes first, and of two in one place the plane with the lower number.
    static bool ordered(int64_t a, int64_t b, int64_t down, int64_t right) {
        return down > 0 || (down == 0 && (a < b || (a == b && right >= 0)));
    }
    int64_t plane_of(int64_t channel, int64_t kh, int64_t kw) const {
        return channel * phases + rows.plane[kh] * (int64_t)columns.phases.size() + columns.plane[kw];
    }

   private:
    void add(int64_t a, int64_t b) {
        const auto across = columns.distances(column_phase(a), column_phase(b));
        for (int64_t down : rows.distances(row_phase(a), row_phase(b))) {
            std::vector<int64_t> right;
            for (int64_t d : across)
                if (ordered(a, b, down, d)) right.push_back(d);
            const int64_t count = (int64_t)right.size(), most = columns.step == 1 ? MOMENT_RUN : 1;
            const int64_t parts = (count + most - 1) / most;
            for (int64_t part = 0; part < parts; part++) {
                const Range r = part_of({0, count}, part, parts);
                runs[a].push_back({b, down, right[r.begin], r.size(), sums});
                for (int64_t i = r.begin; i < r.end; i++) at(a, b, down, right[i]) = sums++;
            }
        }
    }
};

// DL floats, `step` apart.
INLINE HalfVec load_apart(const float* p, int64_t step) {
    if (step == 1) return *(const LooseHalfVec*)p;
    HalfIVec offset;
    UNROLL for (int i = 0; i < DL; i++) offset[i] = i * (int32_t)step;
#if LANES == 16
    return (HalfVec)_mm256_i32gather_ps(p, (__m256i)offset, 4);
#else
    return (HalfVec)_mm_i32gather_ps(p, (__m128i)offset, 4);
#endif
}

INLINE DVec load_doubles(const double* p) { return *(const DVec*)p; }
INLINE double sum(DVec v) {
    double total = 0;
    UNROLL for (int i = 0; i < DL; i++) total += v[i];
    return total;
}

// Adds to sums[(row * RUN + i) * apart] what a(u) * b[row](u + i) comes to over a rectangle of u.
template <int ROWS, int RUN>
void moment_block(const double* a, const double* const* b, int64_t height, int64_t columns, int64_t width, double* const* sums,
                  int64_t apart) {
    DVec total[ROWS][RUN] = {};
    for (int64_t r = 0; r < height; r++) {
        const double* factor = a + r * width;
        const double* others[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++) others[i] = b[i] + r * width;
        for (int64_t c = 0; c < columns * DL; c += DL) {
            const DVec x = load_doubles(factor + c);
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int j = 0; j < RUN; j++) total[i][j] += x * load_doubles(others[i] + c + j * DL);
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < RUN; j++) sums[i][j * apart] += sum(total[i][j]);
}

inline double plane_sum(const double* a, int64_t height, int64_t columns, int64_t width) {
    DVec total[4] = {};  // an addition waits for the one before
    for (int64_t r = 0; r < height; r++, a += width) {
        int64_t k = 0;
        for (; k + 4 <= columns; k += 4)
            UNROLL for (int i = 0; i < 4; i++) total[i] += load_doubles(a + (k + i) * DL);
        for (; k < columns; k++) total[0] += load_doubles(a + k * DL);
    }
    return sum((total[0] + total[1]) + (total[2] + total[3]));
}

using MomentBlock = void (*)(const double*, const double* const*, int64_t, int64_t, int64_t, double* const*, int64_t);

template <int RUN>
constexpr std::array<MomentBlock, MOMENT_ROWS> moment_blocks_of() {
    constexpr int most = std::min(MOMENT_ROWS, MOMENT_TOTALS / RUN);
    return {moment_block<1, RUN>, moment_block<std::min(2, most), RUN>, moment_block<std::min(3, most), RUN>,
            moment_block<std::min(4, most), RUN>};
}
constexpr std::array<MomentBlock, MOMENT_ROWS> MOMENT_BLOCKS[MOMENT_RUN] = {
    moment_blocks_of<1>(), moment_blocks_of<2>(), moment_blocks_of<3>(), moment_blocks_of<4>(),
    moment_blocks_of<5>(), moment_blocks_of<6>(), moment_blocks_of<7>()};

// A value near the mean of each channel of a group, of a few rows of the first images; 0 where nothing finite is found. Where it is
// far from the mean, the variance is large too.
inline void near_means(const Problem& p, const float* group, double* means) {
    const int64_t apart = std::max<int64_t>(1, p.size[ROW] / 16);
    for (int64_t c = 0; c < p.in_channels; c++) {
        double total = 0, count = 0;
        for (int64_t n = 0; n < std::min<int64_t>(p.batch, DL); n++)
            for (int64_t r = 0; r < p.size[ROW]; r += apart) {
                const float* row = group + n * p.x_stride[BATCH] + c * p.x_stride[CHANNEL] + r * p.x_stride[HEIGHT];
                for (int64_t k = 0; k < p.size[COLUMN]; k++) {
                    const double v = row[k * p.x_stride[WIDTH]];
                    const bool finite = std::isfinite(v);
                    total += finite ? v : 0;
                    count += finite;
                }
            }
        means[c] = count ? (float)(total / count) : 0;
    }
}

// `count` pixels, `step` apart, of each image less `mean`; 0 for images that do not exist.
inline void fill_row(const float* from, int64_t images, int64_t image, int64_t step, int64_t count, double mean, double* to) {
    int64_t k = 0;
    if (images == DL && step == (int32_t)step && count >= DL) {
        while (k < count) {
            k = std::min(k, count - DL);  // the last ones may be done twice
            HalfVec pixels[DL];
            UNROLL for (int n = 0; n < DL; n++) pixels[n] = load_apart(from + n * image + k * step, step);
            transpose<HalfIVec>(pixels);
            UNROLL for (int i = 0; i < DL; i++) *(DVec*)(to + (k + i) * DL) = __builtin_convertvector(pixels[i], DVec) - mean;
            k += DL;
        }
    }
    for (; k < count; k++)
        for (int64_t n = 0; n < DL; n++) to[k * DL + n] = n < images ? (double)from[n * image + k * step] - mean : 0;
}

// Rows [rows.begin, rows.end) of all planes of images [first, first + DL), less their channel's near mean: padding becomes its
// negative. Images that do not exist, and what no tap reads, are 0.
inline void fill_planes(const MomentPlan& plan, const float* group, int64_t first, Range rows, const double* means, double* to) {
    const Problem& p = plan.p;
    const MomentAxis &down = plan.rows, &across = plan.columns;
    const int64_t images = std::min<int64_t>(DL, p.batch - first);
    DMask exist;  // of each lane, whether it is an image
    for (int n = 0; n < DL; n++) exist[n] = n < images ? -1 : 0;
    for (int64_t plane = 0; plane < plan.planes; plane++) {
        const int64_t c = plane / plan.phases, row_phase = down.phases[plan.row_phase(plane)];
        const int64_t column_phase = across.phases[plan.column_phase(plane)];
        const double mean = means[c];
        const DVec padding = DVec{} - mean;
        // Plane columns [inside.begin, inside.end) lie in x.
        const int64_t origin = across.first * across.stride + column_phase;  // of plane column 0
        const auto columns_below = [&](int64_t x) {
            return std::clamp<int64_t>((x - origin + across.stride - 1) / across.stride, 0, across.extent());
        };
        const Range inside = {origin < 0 ? columns_below(0) : 0, columns_below(across.size)};
        for (int64_t r = rows.begin; r < rows.end; r++, to += plan.width * DL) {
            std::fill_n(to, plan.width * DL, 0.0);
            const int64_t y = (r + down.first) * down.stride + row_phase;
            if (r >= down.extent()) continue;
            double* line = to + across.reach * DL;
            const Range read = y < 0 || y >= down.size ? Range{across.extent(), across.extent()} : inside;
            const int64_t at = first * p.x_stride[BATCH] + c * p.x_stride[CHANNEL] + y * p.x_stride[HEIGHT] +
                               (origin + read.begin * across.stride) * p.x_stride[WIDTH];
            for (int64_t k = 0; k < read.begin; k++) *(DVec*)(line + k * DL) = exist ? padding : DVec{};
            fill_row(group + at, images, p.x_stride[BATCH], across.stride * p.x_stride[WIDTH], read.size(), mean,
                     line + read.begin * DL);
            for (int64_t k = read.end; k < across.extent(); k++) *(DVec*)(line + k * DL) = exist ? padding : DVec{};
        }
    }
}

// Adds the zone sums of rows [rows.begin, rows.end), which lie at `planes` with plan.rows.reach rows more.
inline void sum_zones(const MomentPlan& plan, Range rows, const double* planes, double* sums, double* plane_sums) {
    const MomentAxis &down = plan.rows, &across = plan.columns;
    const int64_t width = plan.width * DL, plane = (rows.size() + down.reach) * width;
    for (int64_t a = 0; a < plan.planes; a++) {
        const std::vector<MomentRun>& runs = plan.runs[a];
        for (int64_t zy = 0; zy < down.zones(); zy++) {
            const Range r = {std::max(down.zone(zy).begin, rows.begin), std::min(down.zone(zy).end, rows.end)};
            if (r.size() <= 0) continue;
            for (int64_t zx = 0; zx < across.zones(); zx++) {
                const Range c = across.zone(zx);
                const int64_t zone = zy * across.zones() + zx, at = (r.begin - rows.begin) * width + (across.reach + c.begin) * DL;
                plane_sums[a * plan.zones + zone] += plane_sum(planes + a * plane + at, r.size(), c.size(), width);
                for (size_t i = 0; i < runs.size();) {
                    const int64_t run = runs[i].run, most = std::min<int64_t>(MOMENT_ROWS, MOMENT_TOTALS / run);
                    const double* b[MOMENT_ROWS];
                    double* to[MOMENT_ROWS];
                    int64_t n = 0;
                    for (; n < most && i < runs.size() && runs[i].run == run; n++, i++) {
                        b[n] = planes + runs[i].b * plane + at + runs[i].down * width + runs[i].right * DL;
                        to[n] = sums + runs[i].sums * plan.zones + zone;
                    }
                    MOMENT_BLOCKS[run - 1][n - 1](planes + a * plane + at, b, r.size(), c.size(), width, to, plan.zones);
                }
            }
        }
    }
}

// From a group's zone sums, about near means, to what is asked for.
inline void gather_moments(MomentPlan& plan, const double* sums, const double* plane_sums, const double* means, double* mean,
                           double* scatter) {
    const Problem& p = plan.p;
    const int64_t taps = p.taps(), reduction = p.reduction();
    const double count = (double)(p.batch * p.conv_size[ROW] * p.conv_size[COLUMN]);
    const auto add = [&](const double* zones, int64_t tap) {
        const Range r = plan.rows.zones_of(tap / p.kernel[COLUMN]), c = plan.columns.zones_of(tap % p.kernel[COLUMN]);
        double total = 0;
        for (int64_t zy = r.begin; zy < r.end; zy++)
            for (int64_t zx = c.begin; zx < c.end; zx++) total += zones[zy * plan.columns.zones() + zx];
        return total;
    };
    const auto plane_of = [&](int64_t k) {
        return plan.plane_of(k / taps, k % taps / p.kernel[COLUMN], k % p.kernel[COLUMN]);
    };
    for (int64_t k = 0; k < reduction; k++) mean[k] = add(plane_sums + plane_of(k) * plan.zones, k % taps) / count;
    for (int64_t k = 0; k < reduction; k++)
        for (int64_t l = k; l < reduction; l++) {
            int64_t t = k, u = l;
            const auto distance = [&](const MomentAxis& axis, int64_t from, int64_t to) { return axis.shift[to] - axis.shift[from]; };
            int64_t down = distance(plan.rows, t % taps / p.kernel[COLUMN], u % taps / p.kernel[COLUMN]);
            int64_t right = distance(plan.columns, t % p.kernel[COLUMN], u % p.kernel[COLUMN]);
            if (!MomentPlan::ordered(plane_of(t), plane_of(u), down, right)) {
                std::swap(t, u);
                down = -down;
                right = -right;
            }
            const int64_t index = plan.at(plane_of(t), plane_of(u), down, right);
            const double product = add(sums + index * plan.zones, t % taps) - count * mean[k] * mean[l];
            scatter[k * reduction + l] = scatter[l * reduction + k] = product;
        }
    for (int64_t k = 0; k < reduction; k++) mean[k] += means[k / taps];
}

// mean (groups, K) and scatter (groups, K, K), K in the order of a weight's (channel, row, column).
inline Kernel patch_moments(const Problem& p, const float* x, double* mean, double* scatter) {
    MomentPlan plan(p);
    const int64_t size = (plan.sums + plan.planes) * plan.zones;
    const int64_t row_bytes = plan.planes * plan.width * DL * (int64_t)sizeof(double);
    const int64_t height = std::max<int64_t>(1, MOMENT_BAND_BYTES / row_bytes - plan.rows.reach);
    const int64_t bands = (plan.rows.extent() + height - 1) / height, chunks = (p.batch + DL - 1) / DL;
    const int64_t most = std::max<int64_t>(1, MOMENT_SUMS_BYTES / (size * (int64_t)sizeof(double)));
    const int64_t pieces = std::min<int64_t>({MOMENT_PIECES, bands * chunks, most});
    std::vector<double> parts, means(p.in_channels);
    for (int64_t g = 0; g < p.groups; g++) {
        const float* group = group_of(p, x, 0, g);
        near_means(p, group, means.data());
        parts.assign(pieces * size, 0.0);
#pragma omp parallel for schedule(dynamic) num_threads((int)std::min(p.threads, pieces))
        for (int64_t piece = 0; piece < pieces; piece++) {
            static thread_local Scratch memory;
            double* planes = memory.get<double>((height + plan.rows.reach) * row_bytes / (int64_t)sizeof(double));
            double* sums = parts.data() + piece * size;
            const Range items = part_of({0, bands * chunks}, piece, pieces);
            for (int64_t item = items.begin; item < items.end; item++) {
                const Range band = {item % bands * height, std::min((item % bands + 1) * height, plan.rows.extent())};
                fill_planes(plan, group, item / bands * DL, {band.begin, band.end + plan.rows.reach}, means.data(), planes);
                sum_zones(plan, band, planes, sums, sums + plan.sums * plan.zones);
            }
        }
        for (int64_t piece = 1; piece < pieces; piece++)
            for (int64_t i = 0; i < size; i++) parts[i] += parts[piece * size + i];
        const int64_t reduction = p.reduction();
        gather_moments(plan, parts.data(), parts.data() + plan.sums * plan.zones, means.data(), mean + g * reduction,
                       scatter + g * reduction * reduction);
    }
    return Kernel::patch_moments;
}

}  // namespace
