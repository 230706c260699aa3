// The compact formats on vectors: blocks of 64 numbers widened to float32 and coded again, with the
// same bits on every instruction set. fastopt/formats.py says what they are.
#pragma once

#include "../formats.h"
#include "vec.h"

namespace fastopt::FASTOPT_ISA {
namespace {

// So many numbers of every stream a turn: their scratch stays in the L1 cache, and what is switched
// by a format, or called out of line, is so once for all of them. AdamW with 8-bit states
// took 23.1, 21.2 and 20.8 ns per 16 elements for turns of 64, 128 and 256 (AVX2 on a Xeon, in the
// caches; 18.2, 17.2 and 16.5 with AVX-512).
constexpr int kTurn = 256;
static_assert(kTurn % kBlock == 0);
constexpr int kBlocks = kTurn / int(kBlock);
constexpr uint32_t kInfinity = 0x7f800000, kQuietNan = 0x7fc00000, kSign = 0x80000000;

inline U32 every(uint32_t x) { return x - U32{}; }
template <class V, class T>
inline V load_vector(const T* at) {
  V x;
  __builtin_memcpy(&x, at, sizeof x);
  return x;
}
template <class V, class T>
inline void store_vector(T* at, V x) {
  __builtin_memcpy(at, &x, sizeof x);
}
inline U32 load_words(const uint16_t* at) { return zero_extend(load_vector<U16>(at)); }
inline U32 sign_of(U32 bits) { return bits & kSign; }
inline U32 magnitude_of(U32 bits) { return bits & ~kSign; }
inline I32 is_nan(U32 bits) { return (I32)magnitude_of(bits) > (I32)every(kInfinity); }

// ---- keyed noise ----
// 32 bits for each element, of the lower half of its global index, by one multiplication. The first
// one, of the index, is a sum here (a Weyl sequence).
constexpr uint32_t kWeyl = 0x9e3779b1, kMix = 0x735a2d97;

[[gnu::noinline]] inline void fill_words(uint64_t key, uint32_t element, uint32_t* __restrict out) {
  U32 lanes;
  for (int k = 0; k < kLanes32; ++k) lanes[k] = uint32_t(k) * kWeyl;
  U32 weyl = lanes + every(element * kWeyl + uint32_t(key));
  const U32 second = every(uint32_t(key >> 32));
  for (int i = 0; i < kTurn; i += kLanes32) {
    U32 h = weyl ^ (weyl >> 16);
    h += h << 9;
    h = ((h ^ (h >> 14)) + second) * kMix;
    store_vector(out + i, h ^ (h >> 16));
    weyl += kLanes32 * kWeyl;
  }
}

// The bits of a word that round a stream; the leading ones are each one's own.
template <Rounds kRounds, int kBits>
inline U32 noise(U32 word) {
  if constexpr (kRounds == Rounds::positive) return word >> (32 - kBits);
  if constexpr (kRounds == Rounds::signed_) return word & ((1u << kBits) - 1);
  if constexpr (kRounds == Rounds::weight) {
    return kBits == 8 ? word & 0xff : ((word << 8 | word >> 24) & 0xffff) >> (16 - kBits);
  }
}

// ---- codes of a byte ----
// bits(|x| + c) - bits(c), with 19 bits cut off: 16 codes an octave above c, linear below it. `c`
// is a power of two, `kOctaves` of log range below the block's maximum. A maximum above 1.90625 of
// its power takes the next one: a clipped maximum could not grow past its octave step by step, and
// a second moment stayed 15 to 33 % low. 254: a NaN or an infinity is in the block; then c is
// 2^127, an infinity has code 16, a NaN 24.
constexpr int kStepBits = 19;

template <bool kSigned>
struct Byte {
  static constexpr uint32_t kOctaves = kSigned ? 7 : 15;
  static constexpr Rounds kRounds = kSigned ? Rounds::signed_ : Rounds::positive;

  static uint32_t scale(uint32_t top) {
    const uint32_t e = (top + 0xc0000) >> 23;
    return top >= kInfinity ? 254 : e > kOctaves ? e - kOctaves : 1;
  }

  [[gnu::noinline]] static void decode(const char* __restrict first, const char* __restrict second,
                                       float* __restrict out) {
    for (int b = 0; b < kBlocks; ++b) {
      const U32 c = every(uint32_t(uint8_t(second[b])) << 23);
#pragma GCC unroll 16
      for (int i = 0; i < kBlock; i += kLanes32) {
        const char* const at = first + b * kBlock + i;
        const U32 code = kSigned ? (U32)load_bytes(reinterpret_cast<const int8_t*>(at))
                                 : load_bytes(reinterpret_cast<const uint8_t*>(at));
        const U32 kept = kSigned ? code & 127 : code;
        const U32 x = (U32)((F32)((kept << kStepBits) + c) - (F32)c);
        store_vector(out + b * kBlock + i, kSigned ? x | sign_of(code) : x);
      }
    }
  }

  template <bool kNoisy>
  [[gnu::noinline]] static void encode(const float* __restrict in, const uint32_t* __restrict words,
                                       char* __restrict first, char* __restrict second) {
    constexpr int kVectors = kBlock / kLanes32;
    for (int b = 0; b < kBlocks; ++b) {
      U32 bits[kVectors], code[kVectors], top{};
#pragma GCC unroll 16
      for (int k = 0; k < kVectors; ++k) {
        bits[k] = load_vector<U32>(in + b * kBlock + k * kLanes32);
        top = larger(top, magnitude_of(bits[k]));
      }
      const uint32_t e = scale(largest(top));
      second[b] = char(e);
      const U32 c = every(e << 23);
      if (rarely(e == 254)) {  // a NaN's payload could carry
        for (U32& x : bits) x = is_nan(x) ? sign_of(x) | kQuietNan : x;
      }
#pragma GCC unroll 16
      for (int k = 0; k < kVectors; ++k) {
        const U32 x = magnitude_of(bits[k]);
        const U32 word = kNoisy ? load_vector<U32>(words + b * kBlock + k * kLanes32) : U32{};
        const U32 round = kNoisy ? noise<kRounds, kStepBits>(word) : every(1u << (kStepBits - 1));
        code[k] = ((U32)((F32)x + (F32)c) + (round - c)) >> kStepBits;
        // What is positive is never coded as 0.
        code[k] =
            kSigned ? code[k] | sign_of(bits[k]) >> 24 : larger(code[k], smaller(x, every(1)));
        if (k % 4 == 3) {
          pack_bytes(reinterpret_cast<uint8_t*>(first) + b * kBlock + (k - 3) * kLanes32,
                     code + k - 3);
        }
      }
    }
  }
};

// ---- 16 bits, alone or with what is left of the float32 ----
// Each codec's `join` makes a float32's bits of both planes, `cut` the reverse. kCareful: where a
// NaN is, which is looked for once in two vectors; the others have no instruction for it.
struct Bfloat16 {
  using Low = void;
  static constexpr int kNoise = 16;
  template <bool>
  static U32 join(U16 p, I32) {
    return zero_extend(p) << 16;
  }
  template <bool kCareful, bool kNoisy>
  static void cut(U32 x, U32 round, U32* p, U32*) {
    U32 y = kNoisy ? x + round : upper_rounded((F32)x);
    // An infinity's lower half is zero, so that noise does not carry; a NaN's may.
    if constexpr (kCareful) y = kNoisy ? is_nan(x) ? x | 0x400000 : y : quiet((F32)x);
    *p = y >> 16;
  }
};

struct Float16 {
  using Low = void;
  static constexpr int kNoise = 0;
  template <bool>
  static U32 join(U16 p, I32) {
    return (U32)widen(p, float16{});
  }
  template <bool, bool>
  static void cut(U32 x, U32, U32* p, U32*) {
    *p = zero_extend(narrow((F32)x, float16{}));
  }
};

// The nearest bfloat16, ties away from zero, and the signed rest of the bits: no pattern is lost.
// NaNs are cut; for signalling ones whose upper half is infinity's there is no pair left but zero
// with a negative rest. Read in a step that is a zero whose rest is stale, such as a pruned weight.
struct Split16 {
  using Low = int16_t;
  static constexpr int kNoise = 0;
  template <bool kCareful>
  static U32 join(U16 first, I32 rest) {
    const U32 p = zero_extend(first) << 16, x = p + (U32)rest;
    if constexpr (!kCareful) return x;
    const U32 mended = is_nan(p) ? p | ((U32)rest & 0xffff) : x;
    return ((I32)(magnitude_of(p) == 0) & is_nan(x)) ? p : mended;
  }
  template <bool kCareful, bool>
  static void cut(U32 x, U32, U32* p, U32* rest) {
    U32 y = x + 0x8000;
    if constexpr (kCareful) {
      const U32 magnitude = magnitude_of(x);
      const I32 hidden = (I32)(magnitude >= 0x7f808000) & (I32)(magnitude < 0x7f810000);
      y = hidden ? sign_of(x) : is_nan(x) ? x : y;
    }
    *p = y >> 16;
    *rest = x & 0xffff;
  }
};

// A significand of 16 bits: bfloat16's and a signed byte below it.
struct Split8 {
  using Low = int8_t;
  static constexpr int kNoise = 8;
  template <bool kCareful>
  static U32 join(U16 first, I32 rest) {
    const U32 p = zero_extend(first) << 16, x = p + ((U32)rest << 8);
    if constexpr (kCareful) return is_nan(x) ? p : x;  // a stale rest beside infinity
    return x;
  }
  template <bool kCareful, bool kNoisy>
  static void cut(U32 x, U32 round, U32* p, U32* rest) {
    const U32 y = x + (kNoisy ? round : every(0x80));
    *p = (y + 0x8000) >> 16;
    *rest = y >> 8 & 0xff;
    if constexpr (kCareful) {
      *p = is_nan(x) ? (sign_of(x) | kQuietNan) >> 16 : *p;
      *rest = is_nan(x) ? U32{} : *rest;
    }
  }
};

// The nearest float16 and the rest as a fixed-point number, in 2^-kPlaces of its last place. Taken
// away with the other sign, so that no rest leaves -0 what it is.
template <int kPlaces, class Rest>
struct Fixed {
  using Low = Rest;
  static constexpr int kNoise = 0;
  static U32 exponent(F32 p) { return larger((U32)p >> 23 & 255, every(113)); }
  template <bool>
  static U32 join(U16 first, I32 rest) {
    const F32 p = widen(first, float16{});
    const F32 unit = (F32)((exponent(p) - (10 + kPlaces)) << 23);
    return (U32)(p - __builtin_convertvector(-rest, F32) * unit);
  }
  template <bool, bool>
  static void cut(U32 x, U32, U32* p, U32* rest) {
    const U16 half = narrow((F32)x, float16{});
    const F32 near = widen(half, float16{});
    const F32 per_unit = (F32)((254 + 10 + kPlaces - exponent(near)) << 23);
    // Added to 1.5 * 2^23 a number is rounded to an integer, which the lower bits then hold.
    constexpr float kRounder = 12582912;
    const F32 sum = ((F32)x - near) * per_unit + kRounder;
    U32 fixed = (U32)sum - (U32)(kRounder - F32{});
    if constexpr (sizeof(Rest) == 1) {
      fixed = smaller(larger(fixed, every(uint32_t(-128))), every(127));
    }
    const I32 finite = (I32)(magnitude_of((U32)near) < kInfinity);
    *p = zero_extend(half);
    *rest = (finite ? fixed : U32{}) & (sizeof(Rest) == 1 ? 0xff : 0xffff);
  }
};

template <class Low>
inline I32 load_low(const Low* at) {
  if constexpr (sizeof(Low) == 1) return load_bytes(at);
  if constexpr (sizeof(Low) == 2) return (I32)(load_words((const uint16_t*)at) << 16) >> 16;
}

template <class Codec>
[[gnu::noinline]] void decode(const char* __restrict first, const char* __restrict second,
                              float* __restrict out) {
  using Low = typename Codec::Low;
  for (int i = 0; i < kTurn; i += 2 * kLanes32) {
    U16 p[2];
    I32 rest[2] = {};
    U32 x[2];
    for (int k = 0; k < 2; ++k) {
      const int at = i + k * kLanes32;
      p[k] = load_vector<U16>(first + 2 * at);
      if constexpr (!__is_same(Low, void)) {
        rest[k] = load_low(reinterpret_cast<const Low*>(second) + at);
      }
      x[k] = Codec::template join<false>(p[k], rest[k]);
    }
    if constexpr (!__is_same(Low, void)) {
      if (rarely(any_nan((F32)x[0], (F32)x[1]))) {
        for (int k = 0; k < 2; ++k) x[k] = Codec::template join<true>(p[k], rest[k]);
      }
    }
    for (int k = 0; k < 2; ++k) store_vector(out + i + k * kLanes32, x[k]);
  }
}

template <class Codec, Rounds kRounds>
[[gnu::noinline]] void encode(const float* __restrict in, const uint32_t* __restrict words,
                              char* __restrict first, char* __restrict second) {
  using Low = typename Codec::Low;
  constexpr bool kNoisy = kRounds != Rounds::nearest;
  for (int i = 0; i < kTurn; i += 4 * kLanes32) {
    U32 p[4], rest[4];
    for (int k = 0; k < 4; k += 2) {
      U32 x[2], round[2] = {};
      for (int s = 0; s < 2; ++s) {
        x[s] = load_vector<U32>(in + i + (k + s) * kLanes32);
        if constexpr (kNoisy) {
          const U32 word = load_vector<U32>(words + i + (k + s) * kLanes32);
          round[s] = noise<kRounds, Codec::kNoise>(word);
        }
        Codec::template cut<false, kNoisy>(x[s], round[s], p + k + s, rest + k + s);
      }
      if (rarely(any_nan((F32)x[0], (F32)x[1]))) {
        for (int s = 0; s < 2; ++s) {
          Codec::template cut<true, kNoisy>(x[s], round[s], p + k + s, rest + k + s);
        }
      }
      const int at = i + k * kLanes32;
      pack_words(reinterpret_cast<uint16_t*>(first) + at, p[k], p[k + 1]);
      if constexpr (__is_same(Low, int16_t)) {
        pack_words(reinterpret_cast<uint16_t*>(second) + at, rest[k], rest[k + 1]);
      }
    }
    if constexpr (__is_same(Low, int8_t)) pack_bytes(reinterpret_cast<uint8_t*>(second) + i, rest);
  }
}

// ---- by format ----
// kTurn numbers, whole: what is left of a run is copied first.
inline void decode_turn(Format format, const char* first, const char* second, float* out) {
  switch (format) {
    case Format::float32:
      __builtin_memcpy(out, first, kTurn * sizeof(float));
      return;
    case Format::bfloat16:
      return decode<Bfloat16>(first, second, out);
    case Format::float16:
      return decode<Float16>(first, second, out);
    case Format::signed8:
      return Byte<true>::decode(first, second, out);
    case Format::positive8:
      return Byte<false>::decode(first, second, out);
    case Format::split16:
      return decode<Split16>(first, second, out);
    case Format::split8:
      return decode<Split8>(first, second, out);
    case Format::rest16:
      return decode<Fixed<15, int16_t>>(first, second, out);
    case Format::rest8:
      return decode<Fixed<8, int8_t>>(first, second, out);
  }
}

inline void encode_turn(const Stored& stored, const float* in, const uint32_t* words, char* first,
                        char* second) {
  const bool noisy = stored.rounds != Rounds::nearest;
  switch (stored.format) {
    case Format::float32:
      __builtin_memcpy(first, in, kTurn * sizeof(float));
      return;
    case Format::bfloat16:
      switch (stored.rounds) {
        case Rounds::nearest:
          return encode<Bfloat16, Rounds::nearest>(in, words, first, second);
        case Rounds::weight:
          return encode<Bfloat16, Rounds::weight>(in, words, first, second);
        case Rounds::positive:
          return encode<Bfloat16, Rounds::positive>(in, words, first, second);
        case Rounds::signed_:
          return encode<Bfloat16, Rounds::signed_>(in, words, first, second);
      }
      return;
    case Format::float16:
      return encode<Float16, Rounds::nearest>(in, words, first, second);
    case Format::signed8:
      return (noisy ? Byte<true>::encode<true> : Byte<true>::encode<false>)(in, words, first,
                                                                            second);
    case Format::positive8:
      return (noisy ? Byte<false>::encode<true> : Byte<false>::encode<false>)(in, words, first,
                                                                              second);
    case Format::split16:
      return encode<Split16, Rounds::nearest>(in, words, first, second);
    case Format::split8:
      return (noisy ? encode<Split8, Rounds::weight>
                    : encode<Split8, Rounds::nearest>)(in, words, first, second);
    case Format::rest16:
      return encode<Fixed<15, int16_t>, Rounds::nearest>(in, words, first, second);
    case Format::rest8:
      return encode<Fixed<8, int8_t>, Rounds::nearest>(in, words, first, second);
  }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
