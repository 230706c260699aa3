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

// Compact formats: bytes and 16-bit words in the order of memory. `pack_bytes` stores four vectors
// of numbers below 256, `pack_words` two of numbers below 65536.
inline U32 load_bytes(const uint8_t* at) {
  return (U32)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}
inline I32 load_bytes(const int8_t* at) {
  return (I32)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}
inline void pack_bytes(uint8_t* at, const U32* x) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i low = _mm256_packus_epi32((__m256i)x[0], (__m256i)x[1]);
  const __m256i high = _mm256_packus_epi32((__m256i)x[2], (__m256i)x[3]);
  const __m256i all = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), all);
}
inline void pack_words(uint16_t* at, U32 a, U32 b) {
  const __m256i both = _mm256_packus_epi32((__m256i)a, (__m256i)b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permute4x64_epi64(both, 0xd8));
}
// Of signed integers.
inline U32 larger(U32 a, U32 b) { return (U32)_mm256_max_epi32((__m256i)a, (__m256i)b); }
inline U32 smaller(U32 a, U32 b) { return (U32)_mm256_min_epi32((__m256i)a, (__m256i)b); }
inline uint32_t largest(U32 x) {
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  const __m128i one = _mm_max_epi32(two, _mm_shuffle_epi32(two, 1));
  return uint32_t(_mm_cvtsi128_si32(one));
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
