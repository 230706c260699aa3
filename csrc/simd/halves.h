// The formats of 16 bits on vectors, alone or with what is left of the float32, with the same bits
// on every instruction set. fastopt/formats.py says what they are.
#pragma once

#include "bytes.h"

namespace fastopt::FASTOPT_ISA {
namespace {

// Of each codec, two vectors at a time: `load` joins both planes to a float32's bits, `store` cuts
// them, and leaves the words of the second plane, kRest bytes a number, to who asked. kCareful:
// where a NaN is, which is looked for once in two vectors.
struct Float32 {
  static constexpr int kBytes = 4, kRest = 0, kNoise = 0;
  template <bool>
  static void load(const char* first, const char*, U32* x) {
    for (int k = 0; k < 2; ++k) x[k] = load_vector<U32>(first + k * sizeof(U32));
  }
  template <bool, bool, bool>
  static Words store(char* first, const U32* x, const U32*) {
    for (int k = 0; k < 2; ++k) store_vector(first + k * sizeof(U32), x[k]);
    return Words{};
  }
};

struct Bfloat16 {
  static constexpr int kBytes = 2, kRest = 0, kNoise = 16;
  template <bool kInOrder>
  static void load(const char* first, const char*, U32* x) {
    interleave(Words{}, load_words<kInOrder>(first), x);
  }
  template <bool kInOrder, bool kNoisy, bool kCareful>
  static Words store(char* first, const U32* x, const U32* round) {
    U32 y[2];
    for (int k = 0; k < 2; ++k) {
      y[k] = kNoisy ? x[k] + round[k] : upper_rounded((F32)x[k]);
      // An infinity's lower half is zero, so that noise does not carry; a NaN's may.
      if constexpr (kCareful) {
        y[k] = kNoisy ? is_nan(x[k]) ? x[k] | 0x400000 : y[k] : quiet((F32)x[k]);
      }
    }
    store_words<kInOrder>(first, upper_words(y[0], y[1]));
    return Words{};
  }
};

// A bfloat16 and a signed word below it: their sum is the number.
inline void join(Words p, Words rest, U32* x) {
  interleave(rest, p + (Words)((Shorts)rest >> 15), x);
}

// The nearest bfloat16, ties away from zero, and the signed rest of the bits: no pattern is lost.
// NaNs are cut; for signalling ones whose upper half is infinity's there is no pair left but zero
// with a negative rest. Read in a step that is a zero whose rest is stale, such as a pruned weight.
struct Split16 {
  static constexpr int kBytes = 2, kRest = 2, kNoise = 0;
  template <bool kInOrder>
  static void load(const char* first, const char* second, U32* x) {
    const Words upper = load_words<kInOrder>(first), rest = load_words<kInOrder>(second);
    join(upper, rest, x);
    if (rarely(any_nan((F32)x[0], (F32)x[1]))) {
      U32 p[2], cut[2];
      interleave(Words{}, upper, p);
      interleave(rest, upper, cut);
      for (int k = 0; k < 2; ++k) {
        const U32 mended = is_nan(p[k]) ? cut[k] : x[k];
        x[k] = ((I32)(magnitude_of(p[k]) == 0) & is_nan(x[k])) ? p[k] : mended;
      }
    }
  }
  template <bool kInOrder, bool, bool kCareful>
  static Words store(char* first, const U32* x, const U32*) {
    const Words rest = lower_words(x[0], x[1]);
    Words p = upper_words(x[0], x[1]) + (rest >> 15);
    if constexpr (kCareful) {
      U32 y[2];
      for (int k = 0; k < 2; ++k) {
        const U32 magnitude = magnitude_of(x[k]);
        const I32 hidden = (I32)(magnitude >= 0x7f808000) & (I32)(magnitude < 0x7f810000);
        y[k] = hidden ? sign_of(x[k]) : is_nan(x[k]) ? x[k] : x[k] + 0x8000;
      }
      p = upper_words(y[0], y[1]);
    }
    store_words<kInOrder>(first, p);
    return rest;
  }
};

// A significand of 16 bits: bfloat16's and a signed byte below it.
struct Split8 {
  static constexpr int kBytes = 2, kRest = 1, kNoise = 8;
  template <bool kInOrder>
  static void load(const char* first, const char* second, U32* x) {
    const Words upper = load_words<kInOrder>(first);
    join(upper, load_bytes<kInOrder>(second), x);
    if (rarely(any_nan((F32)x[0], (F32)x[1]))) {  // a stale rest beside infinity
      U32 p[2];
      interleave(Words{}, upper, p);
      for (int k = 0; k < 2; ++k) x[k] = is_nan(x[k]) ? p[k] : x[k];
    }
  }
  template <bool kInOrder, bool kNoisy, bool kCareful>
  static Words store(char* first, const U32* x, const U32* round) {
    U32 y[2];
    for (int k = 0; k < 2; ++k) {
      y[k] = x[k] + (kNoisy ? round[k] : every(0x80));
      if constexpr (kCareful) y[k] = is_nan(x[k]) ? sign_of(x[k]) | kQuietNan : y[k];
    }
    const Words rest = lower_words(y[0], y[1]);
    store_words<kInOrder>(first, upper_words(y[0], y[1]) + (rest >> 15));
    return rest >> 8;
  }
};

// Conversions of float16 take vectors in the order of memory.
struct Float16 {
  static constexpr int kBytes = 2, kRest = 0, kNoise = 13;
  template <bool>
  static void load(const char* first, const char*, U32* x) {
    for (int k = 0; k < 2; ++k) {
      x[k] = (U32)widen(load_vector<U16>(first + k * sizeof(U16)), float16{});
    }
  }
  template <bool, bool kNoisy, bool>
  static Words store(char* first, const U32* x, const U32* round) {
    if constexpr (kNoisy) {
      const U32 halves[2] = {rounded(x[0], round[0]), rounded(x[1], round[1])};
      store_words<true>(first, lower_words(halves[0], halves[1]));
      return Words{};
    }
    for (int k = 0; k < 2; ++k) {
      store_vector(first + k * sizeof(U16), narrow((F32)x[k], float16{}));
    }
    return Words{};
  }
  // 13 bits are cut; below 2^-14 of the number that one addition lines up with the subnormal grid.
  static U32 rounded(U32 x, U32 round) {
    const U32 magnitude = magnitude_of(x);
    const U32 lined = (U32)((F32)magnitude + 0x1p-14f) - (1u << 23);
    const U32 kept = (I32)(magnitude < (113u << 23)) ? lined : magnitude;
    const U32 half = smaller(((kept + round) >> 13) - (112u << 10), every(0x7c00));
    return (is_nan(x) ? every(0x7e00) : half) | sign_of(x) >> 16;
  }
};

// The nearest float16 and the rest as a fixed-point number, in 2^-kPlaces of its last place. Taken
// away with the other sign, so that no rest leaves -0 what it is.
template <int kPlaces, int kRestBytes>
struct Fixed {
  static constexpr int kBytes = 2, kRest = kRestBytes, kNoise = 0;
  static U32 exponent(F32 p) { return larger((U32)p >> 23 & 255, every(113)); }
  template <bool kInOrder>
  static void load(const char* first, const char* second, U32* x) {
    U32 rest[2];  // in the upper bits
    interleave(Words{}, kRest == 1 ? load_bytes<true>(second) : load_words<true>(second), rest);
    for (int k = 0; k < 2; ++k) {
      const F32 p = widen(load_vector<U16>(first + k * sizeof(U16)), float16{});
      const F32 unit = (F32)((exponent(p) - (10 + kPlaces)) << 23);
      const I32 fixed = (I32)rest[k] >> (32 - 8 * kRest);
      x[k] = (U32)(p - __builtin_convertvector(-fixed, F32) * unit);
    }
  }
  template <bool, bool, bool>
  static Words store(char* first, const U32* x, const U32*) {
    U32 rest[2];
    for (int k = 0; k < 2; ++k) {
      const U16 half = narrow((F32)x[k], float16{});
      store_vector(first + k * sizeof(U16), half);
      const F32 near = widen(half, float16{});
      const F32 per_unit = (F32)((254 + 10 + kPlaces - exponent(near)) << 23);
      // Added to 1.5 * 2^23 a number is rounded to an integer, which the lower bits then hold.
      constexpr float kRounder = 12582912;
      const F32 sum = ((F32)x[k] - near) * per_unit + kRounder;
      U32 fixed = (U32)sum - (U32)(kRounder - F32{});
      if constexpr (kRest == 1) {
        fixed = smaller(larger(fixed, every(uint32_t(-128))), every(127));
      }
      rest[k] = (I32)(magnitude_of((U32)near) < kInfinity) ? fixed : U32{};
    }
    const Words words = lower_words(rest[0], rest[1]);
    return kRest == 1 ? words & 0xff : words;
  }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
