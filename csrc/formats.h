// The formats of a stream beyond its element type: one plane or two, rounded to nearest or by keyed
// noise. fastopt/formats.py has the same in NumPy.
#pragma once

#include <cstdint>

namespace fastopt {

// What float32 numbers are stored as. signed8, positive8: codes of a byte, and a byte of scale for
// each kBlock of them. split16, split8, rest16, rest8: a bfloat16 or float16, and what is left of
// the float32, in 16 or 8 bits.
enum class Format : uint8_t {
  float32,
  bfloat16,
  float16,
  signed8,
  positive8,
  split16,
  split8,
  rest16,
  rest8
};
constexpr int kFormats = 9;
constexpr const char* kFormatNames[kFormats] = {"float32", "bfloat16",  "float16",
                                                "signed8", "positive8", "split16",
                                                "split8",  "rest16",    "rest8"};

// Blocks follow one another in a parameter's flat global index.
constexpr int64_t kBlock = 64;

// Functions here are static: files compiled for other instruction sets use them too (simd/vec.h).
// Bytes of `count` numbers in the first plane, and in the second.
static constexpr int64_t first_bytes(Format format, int64_t count) {
  return format == Format::float32                                  ? 4 * count
         : format == Format::signed8 || format == Format::positive8 ? count
                                                                    : 2 * count;
}
static constexpr int64_t second_bytes(Format format, int64_t count) {
  switch (format) {
    case Format::signed8:
    case Format::positive8:
      return (count + kBlock - 1) / kBlock;
    case Format::split16:
    case Format::rest16:
      return 2 * count;
    case Format::split8:
    case Format::rest8:
      return count;
    default:
      return 0;
  }
}

// How a stream is rounded: to nearest, or by the bits of a word that are its kind's own. A format
// that has no use for noise takes none.
enum class Rounds : uint8_t { nearest, weight, positive, signed_ };
constexpr int kRoundings = 4;
constexpr const char* kRoundsNames[kRoundings] = {"nearest", "weight", "positive", "signed"};

// Of an element: the k-th one rounds the k-th state of each kind, so that no two share their bits.
constexpr int kWords = 3;

struct Stored {
  Format format = Format::float32;
  Rounds rounds = Rounds::nearest;
  uint8_t word = 0;
  bool plain() const { return format <= Format::float16 && rounds == Rounds::nearest; }
  bool operator==(const Stored& other) const {
    return format == other.format && rounds == other.rounds && word == other.word;
  }
};

// Keyed noise: see simd/codecs.h for what is made of a key in a loop. S. Vigna's splitmix64.
static constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
// Of a parameter's elements at a step, then of those whose global index has this upper half.
static constexpr uint64_t key_of(uint64_t seed, uint64_t step, uint64_t parameter, int word) {
  return mix64(mix64(mix64(seed) ^ step) ^ (parameter + (uint64_t(word) << 32)));
}
static constexpr uint64_t key_of(uint64_t seed, uint64_t step, uint64_t parameter, int word,
                                 uint64_t upper) {
  return mix64(key_of(seed, step, parameter, word) ^ upper);
}

}  // namespace fastopt
