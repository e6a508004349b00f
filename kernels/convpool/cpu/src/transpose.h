// Between memory formats: out-of-place transposition of float and byte matrices, L x L values at a time.
#pragma once

#include "simd.h"

namespace {

INLINE Vec load_lanes(const float* p, int n) { return load_first(p, n); }
INLINE Vec load_lanes(const uint8_t* p, int n) { return (Vec)load_first_bytes(p, n); }
INLINE void store_lanes(float* p, Vec v, int n) { store_first(p, v, n); }
INLINE void store_lanes(uint8_t* p, Vec v, int n) { store_first_bytes(p, (IVec)v, n); }

// What to fetch while a tile is transposed: L streams at once are more than the processor itself fetches ahead of. Rows
// that follow one another are fetched L at a time, for a stream that ends soon would not be fetched ahead of for most of it
// (0.9x on a backward pass from NCHW); of long rows, the values that come next.
constexpr int64_t AHEAD = 96, LONG_ROW = 1024;

// to[column * to_step + row] = from[row * from_step + column]
template <typename T>
inline void transpose_matrix(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
    const int64_t ahead = from_step == columns && columns < LONG_ROW ? std::min<int64_t>(rows, L) * from_step : AHEAD;
    for (int64_t row = 0; row < rows; row += L) {
        const int height = rows - row < L ? (int)(rows - row) : L;
        for (int64_t column = 0; column < columns; column += L) {
            const int width = columns - column < L ? (int)(columns - column) : L;
#if LANES == 16
            if constexpr (sizeof(T) == 1) {
                if (height == L && width == L) {
                    transpose_bytes(from + row * from_step + column, from_step, to + column * to_step + row, to_step);
                    continue;
                }
            }
#endif
            Vec tile[L];
            for (int i = 0; i < height; i++) __builtin_prefetch(from + (row + i) * from_step + column + ahead);
            for (int i = 0; i < width; i++) __builtin_prefetch(to + (column + i) * to_step + row + AHEAD);
            UNROLL for (int i = 0; i < L; i++)
                tile[i] = i < height ? load_lanes(from + (row + i) * from_step + column, width) : Vec{};
            transpose(tile);
            UNROLL for (int i = 0; i < L; i++)
                if (i < width) store_lanes(to + (column + i) * to_step + row, tile[i], height);
        }
    }
}

}  // namespace
