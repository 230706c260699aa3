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
// NaN where x is.
inline F32 at_most(F32 limit, F32 x) { return (F32)_mm512_min_ps((__m512)limit, (__m512)x); }
inline F64 at_most(F64 limit, F64 x) { return (F64)_mm512_min_pd((__m512d)limit, (__m512d)x); }

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

// Compact formats, on registers of 16-bit words: those of two vectors, which `interleave` makes of
// the lower and the upper halves of their numbers. `pack` is its reverse, of signed numbers, with
// saturation; `upper_words` and `lower_words` are, of the halves.
inline void interleave(Words low, Words high, U32* x) {
  x[0] = (U32)_mm512_unpacklo_epi16((__m512i)low, (__m512i)high);
  x[1] = (U32)_mm512_unpackhi_epi16((__m512i)low, (__m512i)high);
}
inline Words pack(U32 a, U32 b) { return (Words)_mm512_packs_epi32((__m512i)a, (__m512i)b); }
inline Words upper_words(U32 a, U32 b) {
  return (Words)_mm512_packus_epi32((__m512i)(a >> 16), (__m512i)(b >> 16));
}
inline Words lower_words(U32 a, U32 b) {
  return (Words)_mm512_packus_epi32((__m512i)(a & 0xffff), (__m512i)(b & 0xffff));
}
// Where the words of the vectors lie in memory: 0-3 and 8-11, 4-7 and 12-15, ... as interleave
// takes them, or, kInOrder, moved so that each vector's follow one another. Bytes are the upper
// halves of words; two registers of words below 256 are stored as bytes.
template <bool kInOrder>
inline Words load_words(const char* at) {
  const __m512i x = _mm512_loadu_si512(at);
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  return (Words)(kInOrder ? _mm512_permutexvar_epi64(order, x) : x);
}
template <bool kInOrder>
inline void store_words(char* at, Words x) {
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  _mm512_storeu_si512(at, kInOrder ? _mm512_permutexvar_epi64(order, (__m512i)x) : (__m512i)x);
}
template <bool kInOrder>
inline Words load_bytes(const char* at) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  const Words x = (Words)_mm512_cvtepu8_epi16(bytes) << 8;
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  return kInOrder ? (Words)_mm512_permutexvar_epi64(order, (__m512i)x) : x;
}
template <bool kInOrder>
inline void store_bytes(char* at, Words a, Words b) {
  const __m512i order =
      kInOrder ? _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
               : _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m512i x = _mm512_packus_epi16((__m512i)a, (__m512i)b);
  _mm512_storeu_si512(at, _mm512_permutexvar_epi32(order, x));
}
// Of signed integers.
inline U32 larger(U32 a, U32 b) { return (U32)_mm512_max_epi32((__m512i)a, (__m512i)b); }
inline U32 smaller(U32 a, U32 b) { return (U32)_mm512_min_epi32((__m512i)a, (__m512i)b); }
inline Shorts smaller(Shorts a, Shorts b) {
  return (Shorts)_mm512_min_epi16((__m512i)a, (__m512i)b);
}
inline uint32_t largest(U32 x) { return uint32_t(_mm512_reduce_max_epi32((__m512i)x)); }

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
