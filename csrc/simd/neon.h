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
// NaN where x is.
inline F32 at_most(F32 limit, F32 x) { return (F32)vminq_f32((float32x4_t)limit, (float32x4_t)x); }
inline F64 at_most(F64 limit, F64 x) { return (F64)vminq_f64((float64x2_t)limit, (float64x2_t)x); }

inline F64 to_doubles(H32 x) { return __builtin_convertvector(x, F64); }
constexpr bool kFusesDoubles = true;

inline U32 zero_extend(U16 x) { return __builtin_convertvector(x, U32); }
inline U32 upper_halves(U32 even, U32 odd) {
  return (U32)vtrn2q_u16((uint16x8_t)even, (uint16x8_t)odd);
}

inline bool any_nan(F32 a, F32 b) { return vminvq_u32((uint32x4_t)((a == a) & (b == b))) == 0; }

inline F32 widen(U16 x, float16) { return (F32)vcvt_f32_f16((float16x4_t)x); }
inline U16 narrow(F32 x, float16) { return (U16)vcvt_f16_f32((float32x4_t)x); }

// Compact formats, on registers of 16-bit words: those of two vectors, which `interleave` makes of
// the lower and the upper halves of their numbers. `pack` is its reverse, of signed numbers, with
// saturation; `upper_words` and `lower_words` are, of the halves.
inline void interleave(Words low, Words high, U32* x) {
  x[0] = (U32)vzip1q_u16((uint16x8_t)low, (uint16x8_t)high);
  x[1] = (U32)vzip2q_u16((uint16x8_t)low, (uint16x8_t)high);
}
inline Words pack(U32 a, U32 b) {
  return (Words)vqmovn_high_s32(vqmovn_s32((int32x4_t)a), (int32x4_t)b);
}
inline Words upper_words(U32 a, U32 b) { return (Words)vuzp2q_u16((uint16x8_t)a, (uint16x8_t)b); }
inline Words lower_words(U32 a, U32 b) { return (Words)vuzp1q_u16((uint16x8_t)a, (uint16x8_t)b); }
// The words of two vectors of four are in the order of memory, whoever asks. Bytes are the upper
// halves of words; two registers of words below 256 are stored as bytes.
template <bool>
inline Words load_words(const char* at) {
  return (Words)vld1q_u16(reinterpret_cast<const uint16_t*>(at));
}
template <bool>
inline void store_words(char* at, Words x) {
  vst1q_u16(reinterpret_cast<uint16_t*>(at), (uint16x8_t)x);
}
template <bool>
inline Words load_bytes(const char* at) {
  return (Words)vshll_n_u8(vld1_u8(reinterpret_cast<const uint8_t*>(at)), 8);
}
template <bool>
inline void store_bytes(char* at, Words a, Words b) {
  const uint8x16_t x = vcombine_u8(vmovn_u16((uint16x8_t)a), vmovn_u16((uint16x8_t)b));
  vst1q_u8(reinterpret_cast<uint8_t*>(at), x);
}
// Of signed integers.
inline U32 larger(U32 a, U32 b) { return (U32)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
inline U32 smaller(U32 a, U32 b) { return (U32)vminq_s32((int32x4_t)a, (int32x4_t)b); }
inline Shorts smaller(Shorts a, Shorts b) { return (Shorts)vminq_s16((int16x8_t)a, (int16x8_t)b); }
inline uint32_t largest(U32 x) { return vmaxvq_u32((uint32x4_t)x); }

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
