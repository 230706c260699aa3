// AVX-512 (F, BW, DQ, VL): 16 floats a vector.
#pragma once

#include <immintrin.h>

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

inline U32 zero_extend(U16 x) { return (U32)_mm512_cvtepu16_epi32((__m256i)x); }
inline U16 upper_halves(U32 x) {
  const auto odd = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 31,
                                    29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return (U16)_mm512_castsi512_si256(_mm512_permutexvar_epi16(odd, (__m512i)x));
}

inline F32 widen(U16 x, float16) { return (F32)_mm512_cvtph_ps((__m256i)x); }
inline U16 narrow(F32 x, float16) {
  return (U16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
