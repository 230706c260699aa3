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

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
