// Vectors of LANES floats, one width per library. GCC's vector extensions do the arithmetic; intrinsics stand only where
// GCC 12 has no good code for the generic form (byte conversions: 2x on a whole backward pass; masks; compress).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#error "compile with AVX-512 or AVX2 enabled: narrower vectors do not beat torch's own layers"
#endif

#define UNROLL _Pragma("GCC unroll 32")
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int L = LANES;
constexpr int REGISTERS = LANES == 16 ? 32 : 16;

typedef float Vec __attribute__((vector_size(4 * L)));
typedef int32_t IVec __attribute__((vector_size(4 * L)));
typedef float LooseVec __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef int32_t LooseIVec __attribute__((vector_size(4 * L), aligned(4), may_alias));

INLINE constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE constexpr int64_t vectors(int64_t n) { return (n + L - 1) / L; }

INLINE Vec load(const float* p) { return *(const LooseVec*)p; }
INLINE void store(float* p, Vec v) { *(LooseVec*)p = v; }
INLINE IVec load(const int32_t* p) { return *(const LooseIVec*)p; }
INLINE void store(int32_t* p, IVec v) { *(LooseIVec*)p = v; }
INLINE Vec splat(float v) { return v - Vec{}; }
INLINE IVec splat(int32_t v) { return v - IVec{}; }
INLINE IVec lane_numbers() {
    IVec v;
    UNROLL for (int i = 0; i < L; i++) v[i] = i;
    return v;
}

// An address that is computed once: GCC would keep each sum of it and a constant that it meets in a register of its own, or
// compute that sum anew for each load (1.5x on the backward pass).
INLINE const float* settled(const float* p) {
    asm("" : "+r"(p));
    return p;
}

// Memory that is read or written soon, fetched to the second-level cache a piece at a time, between arithmetic that does not
// wait for it.
class Ahead {
   public:
    Ahead(const float* begin, int64_t floats, int64_t pieces)
        : next_(begin), end_(begin + floats), piece_(round_up((floats - 1) / std::max<int64_t>(1, pieces) + 1, 16)) {}
    void fetch() {
        for (const float* stop = std::min(end_, next_ + piece_); next_ < stop; next_ += 16) __builtin_prefetch(next_, 0, 2);
    }

   private:
    const float *next_, *end_;
    int64_t piece_;
};

// AddressSanitizer does not see what masked intrinsics touch: in its builds the ends are touched in plain sight.
template <typename T>
INLINE void touch(T* p, int n) {
#ifdef __SANITIZE_ADDRESS__
    if (n > 0) (void)*(volatile T*)p, (void)*(volatile T*)(p + (n < L ? n : L) - 1);
#else
    (void)p, (void)n;
#endif
}

// takes_maximum is max_pool2d's rule: a NaN always takes it, and nothing but another NaN takes it from a NaN.
#if LANES == 16
typedef __mmask16 Mask;
INLINE Mask first_lanes(int n) { return (Mask)(n >= 16 ? 0xffff : (1u << n) - 1); }
INLINE Vec load_first(const float* p, int n) {
    touch(p, n);
    return (Vec)_mm512_maskz_loadu_ps(first_lanes(n), p);
}
INLINE void store_first(float* p, Vec v, int n) {
    touch(p, n);
    _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v);
}
INLINE IVec load_first_bytes(const uint8_t* p, int n) {
    touch(p, n);
    return (IVec)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p));
}
INLINE void store_first_bytes(uint8_t* p, IVec v, int n) {
    touch(p, n);
    _mm_mask_storeu_epi8(p, first_lanes(n), _mm512_cvtepi32_epi8((__m512i)v));
}
// The lanes whose bits are set, moved to the front; the rest is of no use.
INLINE IVec compress(IVec v, unsigned bits) { return (IVec)_mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)v); }
INLINE Vec compress(Vec v, unsigned bits) { return (Vec)_mm512_maskz_compress_ps((__mmask16)bits, (__m512)v); }
INLINE IVec permute(IVec table, IVec index) { return (IVec)_mm512_permutexvar_epi32((__m512i)index, (__m512i)table); }
INLINE IVec look_up(const int32_t* table, IVec index) { return (IVec)_mm512_i32gather_epi32((__m512i)index, table, 4); }
INLINE float sum(Vec v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE Mask takes_maximum(Vec v, Vec best) {
    return _mm512_cmp_ps_mask((__m512)v, (__m512)best, _CMP_GT_OQ) | _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
}
INLINE Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INLINE Vec maximum(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Vec magnitude(Vec v) { return (Vec)_mm512_abs_ps((__m512)v); }
// Bytes of the winners in a 2x2 window: 2 * bottom + (bottom ? right_below : right), or 255 where dead.
INLINE void store_first_winners(uint8_t* p, Mask right, Mask right_below, Mask bottom, Mask dead, int n) {
    touch(p, n);
    const __m128i above = _mm_maskz_mov_epi8(right, _mm_set1_epi8(1));
    const __m128i below = _mm_mask_mov_epi8(_mm_set1_epi8(2), right_below, _mm_set1_epi8(3));
    _mm_mask_storeu_epi8(p, first_lanes(n), _mm_mask_mov_epi8(_mm_mask_mov_epi8(above, bottom, below), dead, _mm_set1_epi8(-1)));
}
INLINE Mask at_most(Vec a, Vec b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INLINE Mask is_finite(Vec v) { return _mm512_cmp_ps_mask(_mm512_sub_ps((__m512)v, (__m512)v), _mm512_setzero_ps(), _CMP_EQ_OQ); }
INLINE Mask equal(IVec a, IVec b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE Mask differ(IVec a, IVec b) { return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE unsigned mask_bits(Mask m) { return m; }
// At most 64 bytes.
struct Bytes {
    __m512i bytes;
    __mmask64 exist;
    INLINE Bytes(const uint8_t* p, int n) : exist(~uint64_t{0} >> (64 - n)) {
#ifdef __SANITIZE_ADDRESS__
        (void)*(volatile const uint8_t*)p, (void)*(volatile const uint8_t*)(p + n - 1);
#endif
        bytes = _mm512_maskz_loadu_epi8(exist, p);
    }
    // Which of them equal `value`: a bit each.
    INLINE uint64_t equal(uint8_t value) const { return _mm512_mask_cmpeq_epi8_mask(exist, bytes, _mm512_set1_epi8((char)value)); }
};
// In each lane four[index & 3], or 0 where not `wanted`.
INLINE Vec pick_of_four(const float* four, IVec index, Mask wanted) {
    touch(four, 4);
    return (Vec)_mm512_maskz_permutevar_ps(wanted, _mm512_broadcast_f32x4(_mm_loadu_ps(four)), (__m512i)index);
}
// For each lane the four values a, right, below, both, side by side.
INLINE void store_quads(float* to, Vec a, Vec right, Vec below, Vec both) {
    const __m512 above[2] = {_mm512_unpacklo_ps((__m512)a, (__m512)right), _mm512_unpackhi_ps((__m512)a, (__m512)right)};
    const __m512 under[2] = {_mm512_unpacklo_ps((__m512)below, (__m512)both), _mm512_unpackhi_ps((__m512)below, (__m512)both)};
    UNROLL for (int i = 0; i < 4; i++) {  // 128-bit lane j: the quad of lane 4 * j + i
        const __m512d top = (__m512d)above[i / 2], bottom = (__m512d)under[i / 2];
        const __m512 quads = (__m512)(i % 2 ? _mm512_unpackhi_pd(top, bottom) : _mm512_unpacklo_pd(top, bottom));
        _mm_storeu_ps(to + 4 * i, _mm512_castps512_ps128(quads));
        _mm_storeu_ps(to + 16 + 4 * i, _mm512_extractf32x4_ps(quads, 1));
        _mm_storeu_ps(to + 32 + 4 * i, _mm512_extractf32x4_ps(quads, 2));
        _mm_storeu_ps(to + 48 + 4 * i, _mm512_extractf32x4_ps(quads, 3));
    }
}
INLINE Vec select(Mask m, Vec yes, Vec no) { return (Vec)_mm512_mask_blend_ps(m, (__m512)no, (__m512)yes); }
INLINE IVec select(Mask m, IVec yes, IVec no) { return (IVec)_mm512_mask_blend_epi32(m, (__m512i)no, (__m512i)yes); }
#else
typedef IVec Mask;  // 0 or -1 in each lane
INLINE Mask first_lanes(int n) { return lane_numbers() < splat(n); }
INLINE Vec load_first(const float* p, int n) {
    touch(p, n);
    return (Vec)_mm256_maskload_ps(p, (__m256i)first_lanes(n));
}
INLINE void store_first(float* p, Vec v, int n) {
    touch(p, n);
    _mm256_maskstore_ps(p, (__m256i)first_lanes(n), (__m256)v);
}
INLINE IVec load_first_bytes(const uint8_t* p, int n) {
    touch(p, n);
    uint64_t packed = 0;
    memcpy(&packed, p, n < 8 ? n : 8);
    return (IVec)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)packed));
}
INLINE void store_first_bytes(uint8_t* p, IVec v, int n) {
    touch(p, n);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    const uint64_t packed = (uint64_t)_mm_cvtsi128_si64(_mm_packus_epi16(words, words));
    memcpy(p, &packed, n < 8 ? n : 8);
}
INLINE Mask takes_maximum(Vec v, Vec best) { return (v > best) | (v != v); }
INLINE Mask greater(Vec a, Vec b) { return a > b; }
INLINE Vec maximum(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Vec magnitude(Vec v) { return (Vec)((IVec)v & splat(0x7fffffff)); }
INLINE Mask at_most(Vec a, Vec b) { return a <= b; }
INLINE Mask is_finite(Vec v) { return v - v == Vec{}; }
INLINE Mask equal(IVec a, IVec b) { return a == b; }
INLINE Mask differ(IVec a, IVec b) { return a != b; }
INLINE Vec pick_of_four(const float* four, IVec index, Mask wanted) {
    touch(four, 4);
    return (Vec)((IVec)_mm256_permutevar_ps(_mm256_broadcast_ps((const __m128*)four), (__m256i)index) & wanted);
}
INLINE void store_quads(float* to, Vec a, Vec right, Vec below, Vec both) {
    const __m256 above[2] = {_mm256_unpacklo_ps((__m256)a, (__m256)right), _mm256_unpackhi_ps((__m256)a, (__m256)right)};
    const __m256 under[2] = {_mm256_unpacklo_ps((__m256)below, (__m256)both), _mm256_unpackhi_ps((__m256)below, (__m256)both)};
    UNROLL for (int i = 0; i < 4; i++) {  // 128-bit lane j: the quad of lane 4 * j + i
        const __m256d top = (__m256d)above[i / 2], bottom = (__m256d)under[i / 2];
        const __m256 quads = (__m256)(i % 2 ? _mm256_unpackhi_pd(top, bottom) : _mm256_unpacklo_pd(top, bottom));
        _mm_storeu_ps(to + 4 * i, _mm256_castps256_ps128(quads));
        _mm_storeu_ps(to + 16 + 4 * i, _mm256_extractf128_ps(quads, 1));
    }
}
INLINE unsigned mask_bits(Mask m) { return (unsigned)_mm256_movemask_ps((__m256)m); }
struct Bytes {
    __m256i bytes[2];
    uint64_t exist;
    INLINE Bytes(const uint8_t* p, int n) : bytes(), exist(~uint64_t{0} >> (64 - n)) { memcpy(bytes, p, n); }
    INLINE uint64_t equal(uint8_t value) const {
        const __m256i wanted = _mm256_set1_epi8((char)value);
        const uint64_t low = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes[0], wanted));
        const uint64_t high = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes[1], wanted));
        return (high << 32 | low) & exist;
    }
};
INLINE Vec select(Mask m, Vec yes, Vec no) { return m ? yes : no; }
INLINE IVec select(Mask m, IVec yes, IVec no) { return m ? yes : no; }
INLINE void store_first_winners(uint8_t* p, Mask right, Mask right_below, Mask bottom, Mask dead, int n) {
    const IVec winner = select(bottom, splat(2) - right_below, -right);
    store_first_bytes(p, select(dead, splat(255), winner), n);
}
struct CompressTable {
    alignas(32) int32_t source[256][8];
    constexpr CompressTable() : source() {
        for (int bits = 0; bits < 256; bits++)
            for (int lane = 0, kept = 0; lane < 8; lane++)
                if (bits >> lane & 1) source[bits][kept++] = lane;
    }
};
constexpr CompressTable COMPRESS;
INLINE Vec compress(Vec v, unsigned bits) {
    return (Vec)_mm256_permutevar8x32_ps((__m256)v, _mm256_load_si256((const __m256i*)COMPRESS.source[bits]));
}
INLINE IVec compress(IVec v, unsigned bits) { return (IVec)compress((Vec)v, bits); }
INLINE IVec permute(IVec table, IVec index) {
    return (IVec)_mm256_permutevar8x32_epi32((__m256i)table, (__m256i)index);
}
INLINE IVec look_up(const int32_t* table, IVec index) { return (IVec)_mm256_i32gather_epi32(table, (__m256i)index, 4); }
INLINE float sum(Vec v) {
    float total = 0;
    UNROLL for (int i = 0; i < L; i++) total += v[i];
    return total;
}
#endif

// Rows become columns: swaps off-diagonal blocks of 8, 4, 2, 1 lanes. About a quarter of a cycle an element with 16 lanes.
template <int DISTANCE, typename I, typename V, int N>
INLINE void transpose_step(V (&rows)[N]) {
    I low, high;
    UNROLL for (int lane = 0; lane < N; lane++) {
        low[lane] = lane & DISTANCE ? N + lane - DISTANCE : lane;
        high[lane] = lane & DISTANCE ? N + lane : lane + DISTANCE;
    }
    UNROLL for (int i = 0; i < N; i++) {
        if (i & DISTANCE) continue;
        const V a = rows[i], b = rows[i | DISTANCE];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i | DISTANCE] = __builtin_shuffle(a, b, high);
    }
}
// I: as many int32_t as V has floats.
template <typename I, typename V, int N>
INLINE void transpose(V (&rows)[N]) {
    if constexpr (N >= 16) transpose_step<8, I>(rows);
    if constexpr (N >= 8) transpose_step<4, I>(rows);
    transpose_step<2, I>(rows);
    transpose_step<1, I>(rows);
}
INLINE void transpose(Vec (&rows)[L]) { transpose<IVec>(rows); }

#if LANES == 16
// 16 rows of 16 bytes become columns; a sixteenth of a cycle a byte, where the way through 32-bit lanes takes a half.
INLINE void transpose_bytes(const uint8_t* from, int64_t from_step, uint8_t* to, int64_t to_step) {
    __m512i rows[4];  // 128-bit lane j of rows[k]: row 4 * k + j
    UNROLL for (int k = 0; k < 4; k++) {
        const auto row = [&](int j) { return _mm_loadu_si128((const __m128i*)(from + (4 * k + j) * from_step)); };
        rows[k] = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
        rows[k] = _mm512_inserti32x4(_mm512_inserti32x4(rows[k], row(2), 2), row(3), 3);
    }
    const __m512i low[2] = {_mm512_unpacklo_epi8(rows[0], rows[1]), _mm512_unpacklo_epi8(rows[2], rows[3])};
    const __m512i high[2] = {_mm512_unpackhi_epi8(rows[0], rows[1]), _mm512_unpackhi_epi8(rows[2], rows[3])};
    // Word t of lane j of quads[q]: column 4 * q + t of rows j, 4 + j, 8 + j, 12 + j.
    const __m512i quads[4] = {_mm512_unpacklo_epi16(low[0], low[1]), _mm512_unpackhi_epi16(low[0], low[1]),
                              _mm512_unpacklo_epi16(high[0], high[1]), _mm512_unpackhi_epi16(high[0], high[1])};
    const __m512i gather = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    UNROLL for (int q = 0; q < 4; q++) {
        const __m512i columns = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(gather, quads[q]), order);
        uint8_t* first = to + 4 * q * to_step;
        _mm_storeu_si128((__m128i*)first, _mm512_castsi512_si128(columns));
        _mm_storeu_si128((__m128i*)(first + to_step), _mm512_extracti32x4_epi32(columns, 1));
        _mm_storeu_si128((__m128i*)(first + 2 * to_step), _mm512_extracti32x4_epi32(columns, 2));
        _mm_storeu_si128((__m128i*)(first + 3 * to_step), _mm512_extracti32x4_epi32(columns, 3));
    }
}
#endif

}  // namespace
