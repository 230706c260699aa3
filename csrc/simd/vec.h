// Native vectors of one instruction set: the types, then loads and stores of every storage type.
//
// Included only by isa.cpp, once per instruction set, inside that set's own namespace: nothing here
// (nor in the headers it pulls in) may have external linkage or call an inline function of the
// standard library, or the linker could hand an AVX-512 body to a baseline caller.
#pragma once

#include <cstdint>

#include "../dtypes.h"

namespace fastopt::FASTOPT_ISA {
namespace {

template <class T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};

constexpr int kLanes32 = FASTOPT_VECTOR_BYTES / 4;
constexpr int kLanes64 = FASTOPT_VECTOR_BYTES / 8;

using F32 = VectorOf<float, kLanes32>::type;
using I32 = VectorOf<int32_t, kLanes32>::type;
using U32 = VectorOf<uint32_t, kLanes32>::type;
using U16 = VectorOf<uint16_t, kLanes32>::type;  // as many lanes as F32: half a register
using F64 = VectorOf<double, kLanes64>::type;

// x - 0 is x for every x, so the compiler reduces this to a broadcast (0 + x would lose -0).
template <class V>
inline V splat(double x) {
  using T = decltype(V{}[0] + 0);
  return static_cast<T>(x) - V{};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA

// fma, sqrt and moving between 16 and 32 bits are the only operations that an instruction set
// spells its own way; everything else is the compiler's vector arithmetic.
#if defined(FASTOPT_SIMD_AVX512)
#include "avx512.h"
#elif defined(FASTOPT_SIMD_AVX2)
#include "avx2.h"
#elif defined(FASTOPT_SIMD_NEON)
#include "neon.h"
#else
#include "baseline.h"
#endif

namespace fastopt::FASTOPT_ISA {
namespace {

// torch.maximum: a NaN on either side is the result.
template <class V>
inline V maximum(V a, V b) {
  return ((a > b) | (a != a)) ? a : b;
}

// torch.clamp to [-limit, limit]: NaN stays NaN.
template <class V>
inline V clamp(V x, V limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

// x / d with the bits of a correctly rounded division, for a divisor whose correctly rounded
// reciprocal is known: one multiplication and two fused ones (P. Markstein, "Computation of
// elementary functions on the IBM RISC System/6000 processor", 1990) in place of a division that
// would hold the divide unit as long as the other one of the update. The residual of an infinite
// quotient is NaN, so infinities keep the first product.
template <class V>
inline V divide(V x, V d, V reciprocal) {
  const V q = x * reciprocal;
  const V corrected = fma(fma(-q, d, x), reciprocal, q);
  return q == q + q ? q : corrected;  // 0 and the infinities: already exact
}

// torch.lerp: start + weight * (end - start), from the nearer end, so that a weight of 1 gives it
// exactly.
template <class V>
struct Lerp {
  V weight, complement;
  bool mostly_end;

  explicit Lerp(double w)
      : weight(splat<V>(w)), complement(weight - splat<V>(1)), mostly_end(!(weight[0] < 0.5f)) {}

  V operator()(V start, V end) const {
    return mostly_end ? fma(complement, end - start, end) : fma(weight, end - start, start);
  }
};

inline F32 widen(F32 x) { return x; }
inline F64 widen(F64 x) { return x; }

// bfloat16 is the upper half of a float32.
inline F32 widen(U16 x, bfloat16) { return (F32)(zero_extend(x) << 16); }

// Round to nearest, ties to even; every NaN becomes the quiet one that torch writes.
inline U16 narrow(F32 x, bfloat16) {
  const U32 bits = (U32)x;
  const U32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return upper_halves((I32)(x == x) ? rounded : U32{} + 0x7fc00000);
}

// How an element type sits in memory and as what it is computed.
template <class E>
struct Storage;
template <>
struct Storage<float> {
  using Raw = F32;
  using Compute = F32;
  static Compute widen(Raw x) { return x; }
  static Raw narrow(Compute x) { return x; }
};
template <>
struct Storage<double> {
  using Raw = F64;
  using Compute = F64;
  static Compute widen(Raw x) { return x; }
  static Raw narrow(Compute x) { return x; }
};
template <class E>
struct Storage16 {
  using Raw = U16;
  using Compute = F32;
  static Compute widen(Raw x) { return FASTOPT_ISA::widen(x, E{}); }
  static Raw narrow(Compute x) { return FASTOPT_ISA::narrow(x, E{}); }
};
template <>
struct Storage<bfloat16> : Storage16<bfloat16> {};
template <>
struct Storage<float16> : Storage16<float16> {};

template <class E>
using Compute = typename Storage<E>::Compute;

template <class E>
constexpr int kLanes = sizeof(Compute<E>) / sizeof(Compute<E>{}[0]);

// All lanes of a vector, at any alignment.
struct Full {
  template <class E>
  static Compute<E> load(const E* at) {
    typename Storage<E>::Raw raw;
    __builtin_memcpy(&raw, at, sizeof raw);
    return Storage<E>::widen(raw);
  }
  template <class E>
  static void store(E* at, Compute<E> x) {
    const auto raw = Storage<E>::narrow(x);
    __builtin_memcpy(at, &raw, sizeof raw);
  }
};

// The first `count` lanes: what a tail has left. Memory beyond them is neither read nor written.
struct Partial {
  int64_t count;
  template <class E>
  Compute<E> load(const E* at) const {
    typename Storage<E>::Raw raw{};
    __builtin_memcpy(&raw, at, count * sizeof(E));
    return Storage<E>::widen(raw);
  }
  template <class E>
  void store(E* at, Compute<E> x) const {
    const auto raw = Storage<E>::narrow(x);
    __builtin_memcpy(at, &raw, count * sizeof(E));
  }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
