// Keyed noise on vectors: what rounds the numbers of a compact stream. fastopt/formats.py says what
// it is.
#pragma once

#include "../formats.h"
#include "vec.h"

namespace fastopt::FASTOPT_ISA {
namespace {

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

// Which number of the two vectors of a register of words a lane of one is.
template <bool kInOrder>
constexpr int element(int part, int lane) {
  return kInOrder ? part * kLanes32 + lane : lane / 4 * 8 + part * 4 + lane % 4;
}

// 32 bits for each element, of the lower half of its global index, by one multiplication. The first
// one, of the index, is a sum here (a Weyl sequence).
template <bool kInOrder>
struct Noise {
  static constexpr uint32_t kWeyl = 0x9e3779b1, kMix = 0x735a2d97;
  U32 lanes, second;
  uint32_t first;

  explicit Noise(uint64_t key) : second(every(uint32_t(key >> 32))), first(uint32_t(key)) {
    for (int k = 0; k < kLanes32; ++k) lanes[k] = uint32_t(element<kInOrder>(0, k)) * kWeyl;
  }
  // What the words are made of that begin here; and those of the k-th vector.
  U32 start(uint32_t at) const { return lanes + every(at * kWeyl + first); }
  U32 operator()(U32 begin, int k) const {
    U32 h = begin + uint32_t(k / 2 * 2 * kLanes32 + element<kInOrder>(k % 2, 0)) * kWeyl;
    h ^= h >> 16;
    h += h << 9;
    h = ((h ^ (h >> 14)) + second) * kMix;
    return h ^ (h >> 16);
  }
};

// The bits of a word that round a stream; the leading ones are each one's own.
template <int kBits>
inline U32 noise(Rounds rounds, U32 word) {
  switch (rounds) {
    case Rounds::positive:
      return word >> (32 - kBits);
    case Rounds::signed_:
      return word & ((1u << kBits) - 1);
    case Rounds::weight:
      return kBits == 8 ? word & 0xff : ((word << 8 | word >> 24) & 0xffff) >> (16 - kBits);
    default:
      return U32{};
  }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
