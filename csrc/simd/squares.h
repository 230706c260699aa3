// Squares in double: of one vector, of a whole block by halving, of a run as it goes by.
#pragma once

#include "../kernels.h"
#include "vec.h"

namespace fastopt::FASTOPT_ISA {
namespace {

inline F64 load_doubles(const double* at) {
  F64 x;
  __builtin_memcpy(&x, at, sizeof x);
  return x;
}
inline F64 load_doubles(const float* at) {
  H32 x;
  __builtin_memcpy(&x, at, sizeof x);
  return to_doubles(x);
}
inline void store_doubles(double* at, F64 x) { __builtin_memcpy(at, &x, sizeof x); }

// sum[0] of `size` numbers, a power of two: the i-th and the (i + size / 2)-th are added, and so
// on.
inline double halve(double* sum, int64_t size) {
  int64_t half = size / 2;
  for (; half >= kLanes64; half /= 2) {
    for (int64_t i = 0; i < half; i += kLanes64) {
      store_doubles(sum + i, load_doubles(sum + i) + load_doubles(sum + i + half));
    }
  }
  for (; half >= 1; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// The squares of the vector at `i` in the order of memory, of which `count` numbers exist.
template <class E>
inline void load_squares(const E* numbers, int64_t i, int64_t count, F64* squares) {
  using S = Ordered<E>;
  const int64_t left = count - i;
  const auto raw = left >= kLanes<E> ? Full::load<S>(numbers + i)
                   : left > 0        ? Partial{left}.load<S>(numbers + i)
                                     : typename S::Raw{};
  const Compute<E> x = S::widen(raw, 0);
  for (int k = 0; k < kLanes<E> / kLanes64; ++k) {
    const F64 wide = load_doubles(reinterpret_cast<const Number<E>*>(&x) + k * kLanes64);
    squares[k] = wide * wide;
  }
}

// The sum of squares of one block, see kNormBlock. The first two halvings happen in registers. It
// asks for the next block as it goes: the norm of 100 gradients of 256x256 took 1.96 ms on one
// thread without, 0.70 ms with.
template <class E>
double block_square_sum(const E* numbers, int64_t count) {
  alignas(64) double sum[kNormBlock / 4];
  int64_t quarter = kLanes32;
  while (4 * quarter < count) quarter *= 2;
  for (int64_t i = 0; i < quarter; i += kLanes<E>) {
    F64 squares[4][2];
    for (int part = 0; part < 4; ++part) {
      const int64_t at = part * quarter + i;
      __builtin_prefetch(numbers + at + kNormBlock);
      load_squares(numbers, at, count, squares[part]);
    }
    for (int k = 0; k < kLanes<E> / kLanes64; ++k) {
      store_doubles(sum + i + k * kLanes64,
                    (squares[0][k] + squares[2][k]) + (squares[1][k] + squares[3][k]));
    }
  }
  return halve(sum, quarter);
}

// sum + x * x, where x was an E. The square of a float is exact in double, so fusing it with the
// sum changes no bit.
template <class E>
inline F64 add_square(F64 sum, F64 x) {
  return sizeof(Number<E>) == sizeof(float) && kFusesDoubles ? fma(x, x, sum) : sum + x * x;
}

// The sums of squares of a run, each by an element's place modulo 16: no vector width shows in
// them. A tile of numbers waits in the L1 cache for one loop that has the places of a sum in
// registers. Adding every vector to its places in memory instead took Adam 14.7 ns per 16 elements
// against 11.8, without statistics 6.2 (AVX2 on a Xeon, in the caches); tiles of 128 to 1024 are
// alike.
template <class E>
class Squares {
 public:
  // Hands a vector of the register at `i` to a sum.
  void add(int which, int64_t i, int part, Compute<E> x) {
    __builtin_memcpy(waiting_[which][part] + i % kTile / kParts, &x, sizeof x);
  }

  // All sums have theirs of the registers before `end`.
  void advance(int64_t end) {
    if (end % kTile == 0) sum_up(end - kTile, end);
  }

  // Adds the sums of the whole run to `totals`.
  void finish(int64_t end, double* totals) {
    for (; end % kPlaces; end += kNumbers<E>) {
      for (int which = 0; which < kSums; ++which) {
        for (int part = 0; part < kParts; ++part) add(which, end, part, Compute<E>{});
      }
    }
    sum_up(end / kTile * kTile, end);
    for (int which = 0; which < kSums; ++which) {
      alignas(64) double ordered[kPlaces];
      for (int k = 0; k < kPlaces; ++k) {
        const int part = k / kPartPlaces, place = k % kPartPlaces;
        ordered[Storage<E>::element(part, place)] = places_[which][part][place];
      }
      totals[which] += halve(ordered, kPlaces);
    }
  }

 private:
  static constexpr int kTile = 256, kPlaces = 16;
  static constexpr int kParts = Storage<E>::kParts, kPartPlaces = kPlaces / kParts;
  static_assert(kTile % kNumbers<E> == 0);

  void sum_up(int64_t begin, int64_t end) {
    constexpr int kVectors = kPartPlaces / kLanes64;
    for (int which = 0; which < kSums; ++which) {
      for (int part = 0; part < kParts; ++part) {
        double* const places = places_[which][part];
        F64 sum[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          sum[v] = begin == 0 ? F64{} : load_doubles(places + v * kLanes64);
        }
        for (int64_t i = 0; i < (end - begin) / kParts; i += kPartPlaces) {
          for (int v = 0; v < kVectors; ++v) {
            sum[v] = add_square<E>(sum[v], load_doubles(waiting_[which][part] + i + v * kLanes64));
          }
        }
        for (int v = 0; v < kVectors; ++v) store_doubles(places + v * kLanes64, sum[v]);
      }
    }
  }

  alignas(64) Number<E> waiting_[kSums][kParts][kTile / kParts];
  alignas(64) double places_[kSums][kParts][kPartPlaces];
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
