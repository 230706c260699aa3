// AArch64 NEON: 4 floats a vector; fused multiply-add, sqrt and float16 are all in the base set.
#pragma once

#include <arm_neon.h>

namespace fastopt::FASTOPT_ISA {
namespace {

inline F32 fma(F32 a, F32 b, F32 c) {
  return (F32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
inline F64 fma(F64 a, F64 b, F64 c) {
  return (F64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
inline F32 sqrt(F32 x) { return (F32)vsqrtq_f32((float32x4_t)x); }
inline F64 sqrt(F64 x) { return (F64)vsqrtq_f64((float64x2_t)x); }

inline F64 to_doubles(H32 x) { return __builtin_convertvector(x, F64); }
constexpr bool kFusesDoubles = true;

inline U32 zero_extend(U16 x) { return __builtin_convertvector(x, U32); }
inline U32 upper_halves(U32 even, U32 odd) {
  return (U32)vtrn2q_u16((uint16x8_t)even, (uint16x8_t)odd);
}

inline bool any_nan(F32 a, F32 b) { return vminvq_u32((uint32x4_t)((a == a) & (b == b))) == 0; }

inline F32 widen(U16 x, float16) { return (F32)vcvt_f32_f16((float16x4_t)x); }
inline U16 narrow(F32 x, float16) { return (U16)vcvt_f16_f32((float32x4_t)x); }

// Compact formats: bytes and 16-bit words in the order of memory. `pack_bytes` stores four vectors
// of numbers below 256, `pack_words` two of numbers below 65536.
inline U32 load_bytes(const uint8_t* at) {
  U8 x;
  __builtin_memcpy(&x, at, sizeof x);
  return __builtin_convertvector(x, U32);
}
inline I32 load_bytes(const int8_t* at) {
  VectorOf<int8_t, kLanes32>::type x;
  __builtin_memcpy(&x, at, sizeof x);
  return __builtin_convertvector(x, I32);
}
inline void pack_bytes(uint8_t* at, const U32* x) {
  const uint16x8_t low = vcombine_u16(vmovn_u32((uint32x4_t)x[0]), vmovn_u32((uint32x4_t)x[1]));
  const uint16x8_t high = vcombine_u16(vmovn_u32((uint32x4_t)x[2]), vmovn_u32((uint32x4_t)x[3]));
  vst1q_u8(at, vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
}
inline void pack_words(uint16_t* at, U32 a, U32 b) {
  const U16 low = __builtin_convertvector(a, U16), high = __builtin_convertvector(b, U16);
  __builtin_memcpy(at, &low, sizeof low);
  __builtin_memcpy(at + kLanes32, &high, sizeof high);
}
// Of signed integers.
inline U32 larger(U32 a, U32 b) { return (U32)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
inline U32 smaller(U32 a, U32 b) { return (U32)vminq_s32((int32x4_t)a, (int32x4_t)b); }
inline uint32_t largest(U32 x) { return vmaxvq_u32((uint32x4_t)x); }

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
