// AVX2 with FMA and F16C: 8 floats a vector.
#pragma once

#include <immintrin.h>

namespace fastopt::FASTOPT_ISA {
namespace {

inline F32 fma(F32 a, F32 b, F32 c) {
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline F64 fma(F64 a, F64 b, F64 c) {
  return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
inline F32 sqrt(F32 x) { return (F32)_mm256_sqrt_ps((__m256)x); }
inline F64 sqrt(F64 x) { return (F64)_mm256_sqrt_pd((__m256d)x); }
// NaN where x is.
inline F32 at_most(F32 limit, F32 x) { return (F32)_mm256_min_ps((__m256)limit, (__m256)x); }
inline F64 at_most(F64 limit, F64 x) { return (F64)_mm256_min_pd((__m256d)limit, (__m256d)x); }

inline F64 to_doubles(H32 x) { return (F64)_mm256_cvtps_pd((__m128)x); }
constexpr bool kFusesDoubles = true;

inline U32 zero_extend(U16 x) { return (U32)_mm256_cvtepu16_epi32((__m128i)x); }
inline U32 upper_halves(U32 even, U32 odd) {
  return (U32)_mm256_blend_epi16((__m256i)(even >> 16), (__m256i)odd, 0xaa);
}

inline bool any_nan(F32 a, F32 b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q)) != 0;
}

inline F32 widen(U16 x, float16) { return (F32)_mm256_cvtph_ps((__m128i)x); }
inline U16 narrow(F32 x, float16) {
  return (U16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Compact formats, on registers of 16-bit words: those of two vectors, which `interleave` makes of
// the lower and the upper halves of their numbers. `pack` is its reverse, of signed numbers, with
// saturation; `upper_words` and `lower_words` are, of the halves.
inline void interleave(Words low, Words high, U32* x) {
  x[0] = (U32)_mm256_unpacklo_epi16((__m256i)low, (__m256i)high);
  x[1] = (U32)_mm256_unpackhi_epi16((__m256i)low, (__m256i)high);
}
inline Words pack(U32 a, U32 b) { return (Words)_mm256_packs_epi32((__m256i)a, (__m256i)b); }
inline Words upper_words(U32 a, U32 b) {
  return (Words)_mm256_packus_epi32((__m256i)(a >> 16), (__m256i)(b >> 16));
}
inline Words lower_words(U32 a, U32 b) {
  const __m256i zero{};
  return (Words)_mm256_packus_epi32(_mm256_blend_epi16((__m256i)a, zero, 0xaa),
                                    _mm256_blend_epi16((__m256i)b, zero, 0xaa));
}
// Where the words of the vectors lie in memory: 0-3 and 8-11, 4-7 and 12-15, ... as interleave
// takes them, or, kInOrder, moved so that each vector's follow one another. Bytes are the upper
// halves of words; two registers of words below 256 are stored as bytes.
template <bool kInOrder>
inline Words load_words(const char* at) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return (Words)(kInOrder ? _mm256_permute4x64_epi64(x, 0xd8) : x);
}
template <bool kInOrder>
inline void store_words(char* at, Words x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                      kInOrder ? _mm256_permute4x64_epi64((__m256i)x, 0xd8) : (__m256i)x);
}
template <bool kInOrder>
inline Words load_bytes(const char* at) {  // -1: a zero
  const __m256i order =
      kInOrder ? _mm256_setr_epi8(-1, 0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11,  //
                                  -1, 4, -1, 5, -1, 6, -1, 7, -1, 12, -1, 13, -1, 14, -1, 15)
               : _mm256_setr_epi8(-1, 0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7,  //
                                  -1, 8, -1, 9, -1, 10, -1, 11, -1, 12, -1, 13, -1, 14, -1, 15);
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return (Words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(x), order);
}
template <bool kInOrder>
inline void store_bytes(char* at, Words a, Words b) {
  const __m256i order = kInOrder ? _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)
                                 : _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
  const __m256i x = _mm256_packus_epi16((__m256i)a, (__m256i)b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permutevar8x32_epi32(x, order));
}
// Of signed integers.
inline U32 larger(U32 a, U32 b) { return (U32)_mm256_max_epi32((__m256i)a, (__m256i)b); }
inline U32 smaller(U32 a, U32 b) { return (U32)_mm256_min_epi32((__m256i)a, (__m256i)b); }
inline Shorts smaller(Shorts a, Shorts b) {
  return (Shorts)_mm256_min_epi16((__m256i)a, (__m256i)b);
}
inline uint32_t largest(U32 x) {
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  const __m128i one = _mm_max_epi32(two, _mm_shuffle_epi32(two, 1));
  return uint32_t(_mm_cvtsi128_si32(one));
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
