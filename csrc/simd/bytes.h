// The codes of a byte on vectors, with the same bits on every instruction set. fastopt/formats.py
// says what they are.
#pragma once

#include "noise.h"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr uint32_t kInfinity = 0x7f800000, kQuietNan = 0x7fc00000, kSign = 0x80000000;

inline U32 sign_of(U32 bits) { return bits & kSign; }
inline U32 magnitude_of(U32 bits) { return bits & ~kSign; }
inline I32 is_nan(U32 bits) { return (I32)magnitude_of(bits) > (I32)every(kInfinity); }

// bits(|x| + c) - bits(c), with 19 bits cut off: 16 codes an octave above c, linear below it. `c`
// is a power of two, `kOctaves` of log range below the block's maximum. A maximum above 1.90625 of
// its power takes the next one: a clipped maximum could not grow past its octave step by step, and
// a second moment stayed 15 to 33 % low. 254: a NaN or an infinity is in the block; then c is
// 2^127, an infinity has code 16, a NaN 24.
//
// Codes are moved, and c taken away from them, as words: two vectors at a time.
template <bool kSigned>
struct Byte {
  static constexpr uint32_t kOctaves = kSigned ? 7 : 15;
  static constexpr Rounds kRounds = kSigned ? Rounds::signed_ : Rounds::positive;
  static constexpr int kStepBits = 19;

  static Words words_of(uint32_t x) { return uint16_t(x) - Words{}; }

  // Of a register of codes, whose scale is `e`.
  static void decode(Words code, uint32_t e, U32* x) {
    const U32 c = every(e << 23);
    const Words kept = code >> (24 - kStepBits);
    interleave(Words{},
               (kSigned ? kept & words_of(127 << (kStepBits - 16)) : kept) + words_of(e << 7), x);
    for (int k = 0; k < 2; ++k) x[k] = (U32)((F32)x[k] - (F32)c);
    if constexpr (kSigned) {
      U32 sign[2];
      interleave(Words{}, code & words_of(0x8000), sign);
      for (int k = 0; k < 2; ++k) x[k] |= sign[k];
    }
  }

  // What is to be known of a number before it is coded.
  static U32 kept(U32 bits) { return kSigned ? bits : magnitude_of(bits); }
  static U32 larger(U32 top, U32 kept) {
    return FASTOPT_ISA::larger(top, kSigned ? magnitude_of(kept) : kept);
  }
  static uint32_t scale(U32 tops) {
    const uint32_t top = largest(tops), e = (top + 0xc0000) >> 23;
    return top >= kInfinity ? 254 : e > kOctaves ? e - kOctaves : 1;
  }
  // In a block with a NaN, whose payload could carry.
  static U32 quiet(U32 kept) { return is_nan(kept) ? sign_of(kept) | kQuietNan : kept; }

  // Words of the codes of two vectors of a block. The sign goes with c, so that it is the sum's.
  template <bool kNoisy>
  static Words encode(const U32* kept, uint32_t e, const U32* word) {
    U32 code[2];
    for (int k = 0; k < 2; ++k) {
      const U32 c = every(e << 23) | (kSigned ? sign_of(kept[k]) : U32{});
      const U32 round = kNoisy ? noise<kStepBits>(kRounds, word[k]) : every(1u << (kStepBits - 1));
      code[k] = (U32)((I32)((U32)((F32)kept[k] + (F32)c) + round) >> kStepBits);
    }
    const Words codes = pack(code[0], code[1]) - words_of(e << (23 - kStepBits));
    if constexpr (kSigned) {  // a sign of -2^12
      return codes + ((Words)((Shorts)codes >> 15) & words_of((1 << 12) + 128));
    } else {  // what is positive is never coded as 0
      const Shorts least = smaller((Shorts)pack(kept[0], kept[1]), 1 - Shorts{});
      return (Words)((Shorts)codes > least ? (Shorts)codes : least);
    }
  }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
