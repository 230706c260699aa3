// One parameter of an Adafactor step as it goes on, and the kernels that each instruction set has.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace fastopt {

// Matrices one behind the other, each of rows x cols; or, where `col` is null, `count` numbers
// whose variance is `row`. All of one type, contiguous, with any alignment.
struct Adafactor {
  char* param;
  const char* grad;
  char* row;  // row_var, one number a row, or variance
  char* col;  // col_var, one number a column
  int64_t count, matrices, rows, cols;
  double weight;  // of what is new in the averages
  double eps;     // the least denominator
  double decay;   // what weight decay leaves of a weight
  double step;    // of an update of size 1, with its sign; known once the norms are
};

// Small matrices go by tiles of so many, in each place of which a vector computes; so long as
// their numbers are at most this many.
constexpr int kTileMatrices = 32, kSmallMatrix = 64, kShortRow = 16;
inline bool is_small(const Adafactor& a) {
  return a.col && a.rows * a.cols <= kSmallMatrix && a.cols < kShortRow;
}

// Sums and columns are held in vectors of this many places, filled up with zeros.
constexpr int64_t kPlaces = 16;
constexpr int64_t padded(int64_t count) { return (count + kPlaces - 1) / kPlaces * kPlaces; }

// Of one element type. Factors and scales are of the type computed in: float, or double for it.
struct AdafactorKernels {
  // The sums of squares of the gradient's rows [from, to), counted over all matrices, and of their
  // columns (padded), which begin at zero.
  void (*sums)(const Adafactor&, int64_t from, int64_t to, double* row_sums, double* col_sums);
  // The averages of a matrix, then 1 / sqrt of its factors of the variance (columns padded).
  void (*factors)(const Adafactor&, int64_t matrix, const double* row_sums, const double* col_sums,
                  void* row_factors, void* col_factors);
  // The averages of small matrices, or of a variance, then 1 / sqrt of the variance of each number.
  void (*scales)(const Adafactor&, int64_t from, int64_t to, void* scales);
  // The sum of squares of the update before it is clipped, then the update; by rows of one matrix
  // or by numbers with scales.
  double (*row_squares)(const Adafactor&, int64_t from, int64_t to, const void* row_factors,
                        const void* col_factors);
  double (*squares)(const Adafactor&, int64_t from, int64_t to, const void* scales);
  void (*write_rows)(const Adafactor&, int64_t from, int64_t to, const void* row_factors,
                     const void* col_factors);
  void (*write)(const Adafactor&, int64_t from, int64_t to, const void* scales);
};

}  // namespace fastopt
