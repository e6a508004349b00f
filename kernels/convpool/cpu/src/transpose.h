// Between memory formats: out-of-place transposition of float and byte matrices, L x L values at a time.
#pragma once

#include "simd.h"

namespace {

INLINE Vec load_lanes(const float* p, int n) { return load_first(p, n); }
INLINE Vec load_lanes(const uint8_t* p, int n) { return (Vec)load_first_bytes(p, n); }
INLINE void store_lanes(float* p, Vec v, int n) { store_first(p, v, n); }
INLINE void store_lanes(uint8_t* p, Vec v, int n) { store_first_bytes(p, (IVec)v, n); }

constexpr int64_t AHEAD = 96;  // values: L streams at once are more than the processor itself fetches ahead of

// to[column * to_step + row] = from[row * from_step + column]
template <typename T>
inline void transpose_matrix(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
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
            for (int i = 0; i < height; i++) __builtin_prefetch(from + (row + i) * from_step + column + AHEAD);
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
