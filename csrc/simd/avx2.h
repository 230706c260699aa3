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

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
