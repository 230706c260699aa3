// Adafactor's sweeps over matrices: compiled once per instruction set, with the same bits on each.
#include "adafactor.h"
#include "kernels.h"
#include "simd/squares.h"
#include "simd/vec.h"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr int kWide = int(kPlaces) / kLanes64;
template <class E>
constexpr int kVectors = int(kPlaces) / kLanes<E>;

// Sixteen numbers in the order of memory, whatever a vector holds of them.
template <class V>
struct Sixteen {
  V v[kPlaces * sizeof(V{}[0] + 0) / sizeof(V)];
};

template <class E>
inline Sixteen<Compute<E>> load16(const E* at, int64_t left) {
  using S = Ordered<E>;
  Sixteen<Compute<E>> x;
  for (int k = 0; k < kVectors<E>; ++k) {
    const int64_t rest = left - k * kLanes<E>;
    const auto raw = rest >= kLanes<E> ? Full::load<S>(at + k * kLanes<E>)
                     : rest > 0        ? Partial{rest}.load<S>(at + k * kLanes<E>)
                                       : typename S::Raw{};
    x.v[k] = S::widen(raw, 0);
  }
  return x;
}

template <class E>
inline void store16(E* at, int64_t left, const Sixteen<Compute<E>>& x) {
  using S = Ordered<E>;
  for (int k = 0; k < kVectors<E>; ++k) {
    const int64_t rest = left - k * kLanes<E>;
    if (rest >= kLanes<E>) {
      Full::store<S>(at + k * kLanes<E>, S::narrow(&x.v[k]));
    } else if (rest > 0) {
      Partial{rest}.store<S>(at + k * kLanes<E>, S::narrow(&x.v[k]));
    }
  }
}

// Each number as it is stored.
template <class E>
inline void widen16(const E* at, int64_t left, Number<E>* out) {
  const Sixteen<Compute<E>> x = load16(at, left);
  __builtin_memcpy(out, &x, sizeof x);
}
template <class E>
inline void narrow16(E* at, int64_t left, const Number<E>* in) {
  Sixteen<Compute<E>> x;
  __builtin_memcpy(&x, in, sizeof x);
  store16(at, left, x);
}

template <class V>
inline void square16(const Sixteen<V>& x, F64* squares) {
  for (int k = 0; k < kWide; ++k) {
    using N = decltype(V{}[0] + 0);
    const F64 wide = load_doubles(reinterpret_cast<const N*>(&x) + k * kLanes64);
    squares[k] = wide * wide;
  }
}

inline double sum16(const F64* sums) {
  alignas(64) double places[kPlaces];
  __builtin_memcpy(places, sums, sizeof places);
  return halve(places, kPlaces);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline double at_least(double limit, double x) { return x < limit ? limit : x; }  // NaN stays
template <class N>
inline N root(N x) {
  return sizeof(N) == sizeof(float) ? N(__builtin_sqrtf(float(x))) : N(__builtin_sqrt(double(x)));
}

// Where the average stood, and stands: in double, from the nearer end.
inline double lerp(double from, double to, double weight) {
  return weight < 0.5 ? from + weight * (to - from) : to - (to - from) * (1 - weight);
}

template <class E>
void sums(const Adafactor& a, int64_t from, int64_t to, double* row_sums, double* col_sums) {
  const E* grad = reinterpret_cast<const E*>(a.grad);
  for (int64_t c = 0; c < padded(a.cols); ++c) col_sums[c] = 0;
  for (int64_t r = from; r < to; ++r) {
    const E* row = grad + r * a.cols;
    F64 sum[kWide] = {};
    for (int64_t c = 0; c < a.cols; c += kPlaces) {
      F64 squares[kWide];
      square16(load16(row + c, a.cols - c), squares);
      for (int k = 0; k < kWide; ++k) {
        sum[k] += squares[k];
        double* const at = col_sums + c + k * kLanes64;
        store_doubles(at, load_doubles(at) + squares[k]);
      }
    }
    *row_sums++ = sum16(sum);
  }
}

// The averages of `count` sums over `over` numbers each, as they are stored.
template <class E>
double average(E* state, const double* sums, int64_t count, double over, double weight,
               Number<E>* out) {
  double total = 0;
  for (int64_t i = 0; i < count; i += kPlaces) {
    Number<E> kept[kPlaces];
    const int64_t left = count - i;
    widen16(state + i, left, kept);
    for (int64_t k = 0; k < least(left, kPlaces); ++k) {
      kept[k] = Number<E>(lerp(kept[k], sums[i + k] / over, weight));
    }
    narrow16(state + i, left, kept);
    for (int64_t k = 0; k < least(left, kPlaces); ++k) total += out[i + k] = kept[k];
  }
  return total;
}

template <class E>
void factors(const Adafactor& a, int64_t matrix, const double* row_sums, const double* col_sums,
             void* row_factors, void* col_factors) {
  using N = Number<E>;
  N* const by_row = static_cast<N*>(row_factors);
  N* const by_col = static_cast<N*>(col_factors);
  const double total = average<E>(reinterpret_cast<E*>(a.row) + matrix * a.rows, row_sums, a.rows,
                                  double(a.cols), a.weight, by_row);
  average<E>(reinterpret_cast<E*>(a.col) + matrix * a.cols, col_sums, a.cols, double(a.rows),
             a.weight, by_col);
  const double mean = at_least(a.eps, total / double(a.rows));
  for (int64_t r = 0; r < a.rows; ++r) by_row[r] = N(1) / root(N(by_row[r] / mean));
  for (int64_t c = 0; c < a.cols; ++c) by_col[c] = N(1) / root(by_col[c]);
  for (int64_t c = a.cols; c < padded(a.cols); ++c) by_col[c] = 0;
}

// What a scale may be: the variance is at least eps * eps. A NaN stays.
template <class E>
inline Number<E> most(const Adafactor& a) {
  return Number<E>(1 / a.eps);
}

// A tile of small matrices, each place of all of them side by side.
template <class E>
void small_scales(const Adafactor& a, int64_t from, int64_t to, Number<E>* scales) {
  using N = Number<E>;
  constexpr int kTile = kTileMatrices;
  const int rows = int(a.rows), cols = int(a.cols), size = rows * cols;
  const N limit = most<E>(a);
  alignas(64) N numbers[kSmallMatrix * kTile + kPlaces], row[kSmallMatrix * kTile + kPlaces],
      col[kShortRow * kTile + kPlaces];
  alignas(64) double row_sums[kSmallMatrix][kTile], col_sums[kShortRow][kTile], mean[kTile];
  alignas(64) N by_row[kSmallMatrix][kTile], by_col[kShortRow][kTile];
  for (int64_t first = from; first < to; first += kTile) {
    const int count = int(least(kTile, to - first));
    const auto load = [&](const char* stream, int each, N* out) {
      const E* at = reinterpret_cast<const E*>(stream) + first * each;
      for (int64_t i = 0; i < count * each; i += kPlaces)
        widen16(at + i, count * each - i, out + i);
    };
    const auto store = [&](char* stream, int each, const N* in) {
      E* at = reinterpret_cast<E*>(stream) + first * each;
      for (int64_t i = 0; i < count * each; i += kPlaces)
        narrow16(at + i, count * each - i, in + i);
    };
    load(a.grad, size, numbers);
    load(a.row, rows, row);
    load(a.col, cols, col);
    for (int i = count * size; i < kTile * size; ++i) numbers[i] = 0;
    for (int i = count * rows; i < kTile * rows; ++i) row[i] = 0;
    for (int i = count * cols; i < kTile * cols; ++i) col[i] = 0;
    for (int c = 0; c < cols; ++c) {
      for (int k = 0; k < kTile; ++k) col_sums[c][k] = 0;
    }
    for (int k = 0; k < kTile; ++k) mean[k] = 0;
    for (int r = 0; r < rows; ++r) {
      for (int k = 0; k < kTile; ++k) row_sums[r][k] = 0;
      for (int c = 0; c < cols; ++c) {
        for (int k = 0; k < kTile; ++k) {
          const double x = numbers[k * size + r * cols + c];
          row_sums[r][k] += x * x;
          col_sums[c][k] += x * x;
        }
      }
      for (int k = 0; k < kTile; ++k) {
        const N now = N(lerp(row[k * rows + r], row_sums[r][k] / cols, a.weight));
        row[k * rows + r] = by_row[r][k] = now;
        mean[k] += now;
      }
    }
    for (int c = 0; c < cols; ++c) {
      for (int k = 0; k < kTile; ++k) {
        const N now = N(lerp(col[k * cols + c], col_sums[c][k] / rows, a.weight));
        col[k * cols + c] = now;
        by_col[c][k] = N(1) / root(now);
      }
    }
    for (int k = 0; k < kTile; ++k) mean[k] = at_least(a.eps, mean[k] / rows);
    for (int r = 0; r < rows; ++r) {
      for (int k = 0; k < kTile; ++k) by_row[r][k] = N(1) / root(N(by_row[r][k] / mean[k]));
    }
    store(a.row, rows, row);
    store(a.col, cols, col);
    N* const out = scales + first * size;
    for (int k = 0; k < count; ++k) {
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < cols; ++c) {
          const N scale = by_row[r][k] * by_col[c][k];
          out[k * size + r * cols + c] = scale > limit ? limit : scale;
        }
      }
    }
  }
}

template <class E>
void scales(const Adafactor& a, int64_t from, int64_t to, void* out) {
  using N = Number<E>;
  N* const scale = static_cast<N*>(out);
  if (a.col) return small_scales<E>(a, from, to, scale);
  const N limit = most<E>(a);
  for (int64_t i = from; i < to; i += kPlaces) {
    const int64_t left = to - i;
    N kept[kPlaces], grad[kPlaces];
    widen16(reinterpret_cast<const E*>(a.row) + i, left, kept);
    widen16(reinterpret_cast<const E*>(a.grad) + i, left, grad);
    for (int k = 0; k < kPlaces; ++k) {
      kept[k] = N(lerp(kept[k], double(grad[k]) * double(grad[k]), a.weight));
    }
    narrow16(reinterpret_cast<E*>(a.row) + i, left, kept);
    for (int64_t k = 0; k < least(left, kPlaces); ++k) {
      const N found = N(1) / root(kept[k]);
      scale[i + k] = found > limit ? limit : found;
    }
  }
}

// The update before it is clipped.
template <class V>
inline Sixteen<V> product(Sixteen<V> x, const Sixteen<V>& scale) {
  for (int k = 0; k < int(sizeof x / sizeof(V)); ++k) x.v[k] *= scale.v[k];
  return x;
}

template <class E>
double squares(const Adafactor& a, int64_t from, int64_t to, const void* scales) {
  const E* grad = reinterpret_cast<const E*>(a.grad);
  const auto* scale = static_cast<const Number<E>*>(scales);
  F64 sum[kWide] = {};
  for (int64_t i = from; i < to; i += kPlaces) {
    F64 squares[kWide];
    square16(product(load16(grad + i, to - i), load16(scale + i, to - i)), squares);
    for (int k = 0; k < kWide; ++k) sum[k] += squares[k];
  }
  return sum16(sum);
}

// p * decay + step * update.
template <class E>
struct Written {
  Compute<E> decay, step;
  explicit Written(const Adafactor& a)
      : decay(splat<Compute<E>>(a.decay)), step(splat<Compute<E>>(a.step)) {}

  void operator()(E* param, int64_t left, const Sixteen<Compute<E>>& update) const {
    Sixteen<Compute<E>> p = load16(param, left);
    for (int k = 0; k < kVectors<E>; ++k) p.v[k] = fma(step, update.v[k], p.v[k] * decay);
    store16(param, left, p);
  }
};

template <class E>
void write(const Adafactor& a, int64_t from, int64_t to, const void* scales) {
  const E* grad = reinterpret_cast<const E*>(a.grad);
  E* param = reinterpret_cast<E*>(a.param);
  const auto* scale = static_cast<const Number<E>*>(scales);
  const Written<E> written(a);
  for (int64_t i = from; i < to; i += kPlaces) {
    written(param + i, to - i, product(load16(grad + i, to - i), load16(scale + i, to - i)));
  }
}

// The scales of sixteen numbers of a row.
template <class E>
inline Sixteen<Compute<E>> scales_of(Compute<E> row, const Number<E>* cols, Compute<E> limit) {
  Sixteen<Compute<E>> scale = load16(cols, kPlaces);
  for (Compute<E>& v : scale.v) {
    v *= row;
    v = v > limit ? limit : v;
  }
  return scale;
}

// visit(first number, how many are left of its row, the update) for the rows [from, to).
template <class E, class Visit>
inline void each_update(const Adafactor& a, int64_t from, int64_t to, const void* row_factors,
                        const void* col_factors, const Visit& visit) {
  const E* grad = reinterpret_cast<const E*>(a.grad);
  const auto* rows = static_cast<const Number<E>*>(row_factors);
  const auto* cols = static_cast<const Number<E>*>(col_factors);
  const auto limit = splat<Compute<E>>(most<E>(a));
  for (int64_t r = from; r < to; ++r) {
    const auto row = splat<Compute<E>>(*rows++);
    for (int64_t c = 0; c < a.cols; c += kPlaces) {
      const int64_t at = r * a.cols + c, left = a.cols - c;
      visit(at, left, product(load16(grad + at, left), scales_of<E>(row, cols + c, limit)));
    }
  }
}

template <class E>
double row_squares(const Adafactor& a, int64_t from, int64_t to, const void* row_factors,
                   const void* col_factors) {
  F64 sum[kWide] = {};
  each_update<E>(a, from, to, row_factors, col_factors,
                 [&](int64_t, int64_t left, Sixteen<Compute<E>> update) {
                   if (left < kPlaces) {  // a limited scale, times what is not there
                     Number<E> numbers[kPlaces];
                     __builtin_memcpy(numbers, &update, sizeof numbers);
                     for (int64_t k = left; k < kPlaces; ++k) numbers[k] = 0;
                     __builtin_memcpy(&update, numbers, sizeof numbers);
                   }
                   F64 squares[kWide];
                   square16(update, squares);
                   for (int k = 0; k < kWide; ++k) sum[k] += squares[k];
                 });
  return sum16(sum);
}

template <class E>
void write_rows(const Adafactor& a, int64_t from, int64_t to, const void* row_factors,
                const void* col_factors) {
  E* param = reinterpret_cast<E*>(a.param);
  const Written<E> written(a);
  each_update<E>(a, from, to, row_factors, col_factors,
                 [&](int64_t at, int64_t left, const Sixteen<Compute<E>>& update) {
                   written(param + at, left, update);
                 });
}

template <class E>
constexpr AdafactorKernels kOf = {sums<E>,    factors<E>,    scales<E>, row_squares<E>,
                                  squares<E>, write_rows<E>, write<E>};

}  // namespace

void add_adafactor(Kernels& table) {
  table.adafactor[int(Dtype::float32)] = kOf<float>;
  table.adafactor[int(Dtype::float64)] = kOf<double>;
  table.adafactor[int(Dtype::bfloat16)] = kOf<bfloat16>;
  table.adafactor[int(Dtype::float16)] = kOf<float16>;
}

}  // namespace fastopt::FASTOPT_ISA
