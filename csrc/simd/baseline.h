// The x86-64 baseline (SSE2): 4 floats a vector, and in software what later sets have as one
// instruction, with the same bits. Slow beside them, but still vector code.
#pragma once

#include <emmintrin.h>

namespace fastopt::FASTOPT_ISA {
namespace {

using I64 = VectorOf<int64_t, kLanes64>::type;

// A fused multiply-add of floats, in double: the product of two 24-bit significands is exact
// there; the sum is rounded to odd (its last bit set whenever it is inexact), so that the second
// rounding, to float, sees on which side of a tie the exact sum lies (Boldo and Melquiond,
// "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
inline F64 multiply_add_to_odd(F64 a, F64 b, F64 c) {
  const F64 product = a * b;
  const F64 sum = product + c;
  const F64 back = sum - product;  // two-sum: `error` is exactly what the addition lost
  const F64 error = (product - (sum - back)) + (c - back);
  const I64 inexact = (error > 0.0) | (error < 0.0);
  const I64 even = ((I64)sum & 1) == 0;
  // One step of the integer image: up where the error has the sum's sign, down where it has not.
  const I64 same_sign = ((I64)error ^ (I64)sum) >= 0;
  const I64 step = same_sign ? I64{} + 1 : I64{} - 1;
  return (F64)((I64)sum + (inexact & even & step));
}

inline F32 fma(F32 a, F32 b, F32 c) {
  const auto low = [](F32 x) { return (F64)_mm_cvtps_pd((__m128)x); };
  const auto high = [](F32 x) { return (F64)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x)); };
  const __m128 first = _mm_cvtpd_ps((__m128d)multiply_add_to_odd(low(a), low(b), low(c)));
  const __m128 second = _mm_cvtpd_ps((__m128d)multiply_add_to_odd(high(a), high(b), high(c)));
  return (F32)_mm_movelh_ps(first, second);
}

// Doubles have no wider type to hide in: libm's fma is exact on every machine.
inline F64 fma(F64 a, F64 b, F64 c) {
  return F64{__builtin_fma(a[0], b[0], c[0]), __builtin_fma(a[1], b[1], c[1])};
}

inline F64 to_doubles(H32 x) { return __builtin_convertvector(x, F64); }
constexpr bool kFusesDoubles = false;

inline U32 zero_extend(U16 x) { return __builtin_convertvector(x, U32); }
inline U32 upper_halves(U32 even, U32 odd) { return even >> 16 | (odd & 0xffff0000); }

inline F32 sqrt(F32 x) { return (F32)_mm_sqrt_ps((__m128)x); }
inline F64 sqrt(F64 x) { return (F64)_mm_sqrt_pd((__m128d)x); }
// NaN where x is.
inline F32 at_most(F32 limit, F32 x) { return (F32)_mm_min_ps((__m128)limit, (__m128)x); }
inline F64 at_most(F64 limit, F64 x) { return (F64)_mm_min_pd((__m128d)limit, (__m128d)x); }

inline bool any_nan(F32 a, F32 b) {
  return _mm_movemask_ps(_mm_cmpunord_ps((__m128)a, (__m128)b)) != 0;
}

// float16 by integer arithmetic. Half subnormals become normal floats by one subtraction, which
// unlike a multiplication of the shifted bits never meets a float32 subnormal (flush-to-zero).
inline F32 widen(U16 x, float16) {
  const U32 half = __builtin_convertvector(x, U32);
  const U32 sign = (half & 0x8000) << 16;
  const U32 magnitude = (half & 0x7fff) << 13;
  const U32 normal = magnitude + (112u << 23);
  const U32 special = magnitude + (224u << 23);
  const F32 smallest = (F32)(U32{} + (113u << 23));
  const U32 subnormal = (U32)((F32)(magnitude + (113u << 23)) - smallest);
  const U32 finite = (I32)(magnitude < (1u << 23)) ? subnormal : normal;
  const U32 quiet = (I32)(magnitude > (31u << 23)) ? U32{} + (1u << 22) : U32{};
  return (F32)(sign | ((I32)(magnitude >= (31u << 23)) ? special | quiet : finite));
}

inline U16 narrow(F32 x, float16) {
  const U32 sign = ((U32)x >> 16) & 0x8000;
  const U32 bits = (U32)x & 0x7fffffff;
  const U32 normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
  // Adding 0.5 lines a half subnormal's last bit up with the float's, and rounds it there.
  const U32 subnormal = (U32)((F32)bits + 0.5f) - (126u << 23);
  const U32 finite = (I32)(bits < (113u << 23)) ? subnormal : normal;
  const U32 nan = 0x7e00 | ((bits >> 13) & 0x1ff);
  const U32 overflow = (I32)(bits > 0x7f800000u) ? nan : U32{} + 0x7c00;
  return __builtin_convertvector(sign | ((I32)(bits >= 0x477ff000u) ? overflow : finite), U16);
}

// Compact formats, on registers of 16-bit words: those of two vectors, which `interleave` makes of
// the lower and the upper halves of their numbers. `pack` is its reverse, of signed numbers, with
// saturation; `upper_words` and `lower_words` are, of the halves.
inline void interleave(Words low, Words high, U32* x) {
  x[0] = (U32)_mm_unpacklo_epi16((__m128i)low, (__m128i)high);
  x[1] = (U32)_mm_unpackhi_epi16((__m128i)low, (__m128i)high);
}
inline Words pack(U32 a, U32 b) { return (Words)_mm_packs_epi32((__m128i)a, (__m128i)b); }
inline Words upper_words(U32 a, U32 b) { return pack((U32)((I32)a >> 16), (U32)((I32)b >> 16)); }
inline Words lower_words(U32 a, U32 b) { return upper_words(a << 16, b << 16); }
// The words of two vectors of four are in the order of memory, whoever asks. Bytes are the upper
// halves of words; two registers of words below 256 are stored as bytes.
template <bool>
inline Words load_words(const char* at) {
  return (Words)_mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}
template <bool>
inline void store_words(char* at, Words x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), (__m128i)x);
}
template <bool>
inline Words load_bytes(const char* at) {
  const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
  return (Words)_mm_unpacklo_epi8(__m128i{}, x);
}
template <bool>
inline void store_bytes(char* at, Words a, Words b) {
  const __m128i x = _mm_packus_epi16((__m128i)a, (__m128i)b);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), x);
}
// Of signed integers.
inline U32 larger(U32 a, U32 b) { return (I32)a > (I32)b ? a : b; }
inline U32 smaller(U32 a, U32 b) { return (I32)a < (I32)b ? a : b; }
inline Shorts smaller(Shorts a, Shorts b) { return (Shorts)_mm_min_epi16((__m128i)a, (__m128i)b); }
inline uint32_t largest(U32 x) {
  uint32_t most = x[0];
  for (int k = 1; k < kLanes32; ++k) most = x[k] > most ? x[k] : most;
  return most;
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
