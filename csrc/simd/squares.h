// Squares in double: of one vector, of a whole block by halving, of a run as it goes by.
#pragma once

#include "vec.h"

namespace fastopt::FASTOPT_ISA {
namespace {

// Calls use(k, squares) for the k-th vector of doubles that x widens to. The square of a float is
// exact.
template <class Use>
inline void each_square(F64 x, const Use& use) {
  use(0, x * x);
}
template <class Use>
inline void each_square(F32 x, const Use& use) {
  using Half = VectorOf<float, kLanes64>::type;
  for (int k = 0; k < 2; ++k) {
    Half half;
    __builtin_memcpy(&half, reinterpret_cast<const char*>(&x) + k * sizeof half, sizeof half);
    const F64 wide = __builtin_convertvector(half, F64);
    use(k, wide * wide);
  }
}

inline F64 load_doubles(const double* at) {
  F64 x;
  __builtin_memcpy(&x, at, sizeof x);
  return x;
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
  const auto load = [&](const auto& lanes) {
    return S::widen(lanes.template load<S>(numbers + i), 0);
  };
  const int64_t left = count - i;
  const Compute<E> x = left >= kLanes<E> ? load(Full{})
                       : left > 0        ? load(Partial{left})
                                         : Compute<E>{};
  each_square(x, [&](int k, F64 square) { squares[k] = square; });
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

// A running sum of squares, by an element's place modulo 16: no vector width shows in it. A part's
// places lie side by side.
template <class E>
struct SquareSum {
  static constexpr int kPlaces = 16;
  static constexpr int kParts = Storage<E>::kParts;
  static constexpr int kPartPlaces = kPlaces / kParts;
  alignas(64) double sum[kPlaces] = {};

  void add(int64_t i, int part, Compute<E> x) {
    each_square(x, [&](int k, F64 squares) {
      double* const at = sum + part * kPartPlaces + (i / kParts + k * kLanes64) % kPartPlaces;
      store_doubles(at, load_doubles(at) + squares);
    });
  }
  double total() const {
    alignas(64) double ordered[kPlaces];
    for (int k = 0; k < kPlaces; ++k) {
      ordered[Storage<E>::element(k / kPartPlaces, k % kPartPlaces)] = sum[k];
    }
    return halve(ordered, kPlaces);
  }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
