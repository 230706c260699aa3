// The streams of a run: all of one element type, or each of its own, known when it runs, where one
// is of doubles. Their addresses are copied one by one, to stay in registers whatever is stored: a
// Run copied whole goes by way of a vector in memory, 2 ns each.
#pragma once

#include "../kernels.h"
#include "vec.h"

namespace fastopt::FASTOPT_ISA {
namespace {

template <class Element, int kCount>
struct Alike {
  using E = Element;
  using S = Storage<E>;
  char* streams[kCount];

  explicit Alike(const Run& run) {
    for (int k = 0; k < kCount; ++k) streams[k] = run.streams[k];
  }

  template <class Lanes>
  typename S::Raw load(const Lanes& lanes, int k, int64_t i) const {
    return lanes.template load<S>(reinterpret_cast<const E*>(streams[k]) + i);
  }
  template <class Lanes>
  void store(const Lanes& lanes, int k, int64_t i, typename S::Raw raw) const {
    lanes.template store<S>(reinterpret_cast<E*>(streams[k]) + i, raw);
  }
  const char* at(int k, int64_t i) const { return streams[k] + i * int64_t(sizeof(E)); }
};

// Each number is widened to double as it is loaded, and rounded to its own type as it is stored; to
// 16 bits by way of float. The type of a stream never changes within a run, so that the switch is
// always predicted.
template <int kCount>
struct Mixed {
  using E = double;
  using S = Storage<E>;
  char* streams[kCount];
  Dtype dtypes[kCount];

  explicit Mixed(const Run& run) {
    for (int k = 0; k < kCount; ++k) {
      streams[k] = run.streams[k];
      dtypes[k] = run.dtypes[k];
    }
  }

  template <class Lanes>
  F64 load(const Lanes& lanes, int k, int64_t i) const {
    switch (dtypes[k]) {
      case Dtype::float32:
        return load_as<float>(lanes, k, i);
      case Dtype::bfloat16:
        return load_as<bfloat16>(lanes, k, i);
      case Dtype::float16:
        return load_as<float16>(lanes, k, i);
      default:
        return lanes.template load<S>(reinterpret_cast<const double*>(streams[k]) + i);
    }
  }
  template <class Lanes>
  void store(const Lanes& lanes, int k, int64_t i, F64 x) const {
    switch (dtypes[k]) {
      case Dtype::float32:
        return store_as<float>(lanes, k, i, x);
      case Dtype::bfloat16:
        return store_as<bfloat16>(lanes, k, i, x);
      case Dtype::float16:
        return store_as<float16>(lanes, k, i, x);
      default:
        return lanes.template store<S>(reinterpret_cast<double*>(streams[k]) + i, x);
    }
  }
  const char* at(int k, int64_t i) const { return streams[k] + i * kElementBytes[int(dtypes[k])]; }

 private:
  // A vector of doubles is half as many numbers as one of floats: the first of them.
  static Partial limited(Full) { return Partial{kLanes64}; }
  static Partial limited(Partial some) { return some; }

  template <class T, class Lanes>
  F64 load_as(const Lanes& lanes, int k, int64_t i) const {
    const T* from = reinterpret_cast<const T*>(streams[k]) + i;
    const F32 x = Ordered<T>::widen(limited(lanes).template load<Ordered<T>>(from), 0);
    H32 half;
    __builtin_memcpy(&half, &x, sizeof half);
    return to_doubles(half);
  }
  template <class T, class Lanes>
  void store_as(const Lanes& lanes, int k, int64_t i, F64 x) const {
    T* to = reinterpret_cast<T*>(streams[k]) + i;
    const H32 half = __builtin_convertvector(x, H32);
    F32 all{};
    __builtin_memcpy(&all, &half, sizeof half);
    limited(lanes).template store<Ordered<T>>(to, Ordered<T>::narrow(&all));
  }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
