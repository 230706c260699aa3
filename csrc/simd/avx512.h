// AVX-512 (F, BW, DQ, VL): 16 floats a vector.
#pragma once

// GCC's own headers warn of the "undefined" operands that they make (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace fastopt::FASTOPT_ISA {
namespace {

inline F32 fma(F32 a, F32 b, F32 c) {
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline F64 fma(F64 a, F64 b, F64 c) {
  return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
inline F32 sqrt(F32 x) { return (F32)_mm512_sqrt_ps((__m512)x); }
inline F64 sqrt(F64 x) { return (F64)_mm512_sqrt_pd((__m512d)x); }

inline F64 to_doubles(H32 x) { return (F64)_mm512_cvtps_pd((__m256)x); }
constexpr bool kFusesDoubles = true;

inline U32 zero_extend(U16 x) { return (U32)_mm512_cvtepu16_epi32((__m256i)x); }
inline U32 upper_halves(U32 even, U32 odd) { return even >> 16 | (odd & 0xffff0000); }
inline bool any_nan(F32 a, F32 b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q) != 0;
}

inline F32 widen(U16 x, float16) { return (F32)_mm512_cvtph_ps((__m256i)x); }
inline U16 narrow(F32 x, float16) {
  return (U16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Compact formats: bytes and 16-bit words in the order of memory. `pack_bytes` stores four vectors
// of numbers below 256, `pack_words` two of numbers below 65536.
inline U32 load_bytes(const uint8_t* at) {
  return (U32)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline I32 load_bytes(const int8_t* at) {
  return (I32)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline void pack_bytes(uint8_t* at, const U32* x) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = _mm512_packus_epi32((__m512i)x[0], (__m512i)x[1]);
  const __m512i high = _mm512_packus_epi32((__m512i)x[2], (__m512i)x[3]);
  const __m512i all = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
  __builtin_memcpy(at, &all, sizeof all);
}
inline void pack_words(uint16_t* at, U32 a, U32 b) {
  const __m256i low = _mm512_cvtepi32_epi16((__m512i)a), high = _mm512_cvtepi32_epi16((__m512i)b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + kLanes32), high);
}
// Of signed integers.
inline U32 larger(U32 a, U32 b) { return (U32)_mm512_max_epi32((__m512i)a, (__m512i)b); }
inline U32 smaller(U32 a, U32 b) { return (U32)_mm512_min_epi32((__m512i)a, (__m512i)b); }
inline uint32_t largest(U32 x) { return uint32_t(_mm512_reduce_max_epi32((__m512i)x)); }

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
