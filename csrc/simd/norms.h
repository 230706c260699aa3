// Sums of squares that are rounded once: in which order they are added shows in none.
#pragma once

#include <type_traits>

#include "../kernels.h"
#include "squares.h"
#include "vec.h"

namespace fastopt::FASTOPT_ISA {
namespace {

// What the step of a tensor waits for is a function of parameter and gradient, and of the states
// where the update's `measured` takes them: those that it does not take are not asked for.
template <class Update, class V>
constexpr bool kMeasuresStates = std::is_invocable_v<decltype(&Update::measured), Update, V, V, V*>;
template <class Update, class V>
inline V measured(const Update& update, V p, V g, V* state) {
  if constexpr (kMeasuresStates<Update, V>) {
    return update.measured(p, g, state);
  } else {
    return update.measured(p, g);
  }
}

// Behind the last of a register's numbers: zeros.
template <class S, class V>
inline void keep_numbers(Full, int, V&) {}
template <class S, class V>
inline void keep_numbers(Partial some, int part, V& x) {
  for (int lane = 0; lane < int(sizeof(V) / sizeof x[0]); ++lane) {
    if (S::element(part, lane) >= some.count) x[lane] = 0;
  }
}

// The squares of floats are exact in double, where their sum is off by less than what the norm is
// then rounded to by half a billion. The sum of doubles' squares, each rounded, is kept in two.
template <class E>
class Norms {
 public:
  void add(int which, Compute<E> x) {
    for (int k = 0; k < kVectors; ++k) {
      const F64 wide = load_doubles(reinterpret_cast<const Number<E>*>(&x) + k * kLanes64);
      TwoSum<F64>& sum = sums_[which][k];
      if constexpr (sizeof(Number<E>) == sizeof(double)) {
        sum.add(wide * wide);
      } else {
        sum.high = add_square<E>(sum.high, wide);
      }
    }
  }
  void advance(int64_t) {}

  // Adds the sums of the whole run to `totals`, each in two.
  void finish(int64_t, double* totals) const {
    for (int which = 0; which < kNorms; ++which) {
      TwoSum<double> total{totals[2 * which], totals[2 * which + 1]};
      for (const TwoSum<F64>& sum : sums_[which]) {
        for (int lane = 0; lane < kLanes64; ++lane) {
          total.add(sum.high[lane]);
          total.low += sum.low[lane];
        }
      }
      totals[2 * which] = total.high;
      totals[2 * which + 1] = total.low;
    }
  }

 private:
  static constexpr int kVectors = sizeof(Compute<E>) / sizeof(Number<E>) / kLanes64;
  TwoSum<F64> sums_[kNorms][kVectors] = {};
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
