// Native vectors of one instruction set: the types, then loads and stores of every storage type.
//
// Included only by isa.cpp and isa_compact.cpp, once per instruction set, inside that set's own
// namespace: nothing here (nor in the headers it pulls in) may have external linkage or call an
// inline function of the standard library, or the linker could hand an AVX-512 body to a baseline
// caller.
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
using U16 = VectorOf<uint16_t, kLanes32>::type;        // as many lanes as F32: half a register
using Words = VectorOf<uint16_t, 2 * kLanes32>::type;  // a whole one of such
using Shorts = VectorOf<int16_t, 2 * kLanes32>::type;
using H32 = VectorOf<float, kLanes64>::type;  // as many lanes as F64: half a register
using F64 = VectorOf<double, kLanes64>::type;

// x - 0 is x for every x, so the compiler reduces this to a broadcast (0 + x would lose -0).
template <class V>
inline V splat(double x) {
  using T = decltype(V{}[0] + 0);
  return static_cast<T>(x) - V{};
}

// A condition whose code lies out of the loop's way: Adam in the kernel with all passes took 8.9 ns
// per 16 elements with each pass in its place, 6.8 without (AVX2 on a Xeon, none asked for).
inline bool rarely(bool x) { return __builtin_expect(x, false); }

}  // namespace
}  // namespace fastopt::FASTOPT_ISA

// fma, sqrt, minima and maxima, a look for NaNs and moving between types are the only operations
// that an instruction set spells its own way; everything else is the compiler's vector arithmetic.
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
// would hold the divide unit as long as the other one of the update. For x that is not negative:
// an infinite quotient, whose residual would be NaN, is taken for the largest number, from which
// the residual leads back to infinity.
template <class V>
inline V divide(V x, V d, V reciprocal) {
  const V most = splat<V>(sizeof(V{}[0]) == 4 ? __FLT_MAX__ : __DBL_MAX__);
  const V q = at_most(most, x * reciprocal);
  return fma(fma(-q, d, x), reciprocal, q);
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

// How an element type sits in memory and as what it is computed: `Raw`, what one load brings, holds
// the numbers of kParts vectors, and lane l of a part is number element(part, l) of them. Here: one
// vector, in order.
template <class R, class V>
struct InOrder {
  using Raw = R;
  using Compute = V;
  static constexpr int kParts = 1;
  static constexpr int element(int, int lane) { return lane; }
};

template <class E>
struct Storage;
template <>
struct Storage<float> : InOrder<F32, F32> {
  static F32 widen(F32 x, int) { return x; }
  static F32 narrow(const F32* part) { return part[0]; }
};
template <>
struct Storage<double> : InOrder<F64, F64> {
  static F64 widen(F64 x, int) { return x; }
  static F64 narrow(const F64* part) { return part[0]; }
};
template <>
struct Storage<float16> : InOrder<U16, F32> {
  static F32 widen(U16 x, int) { return FASTOPT_ISA::widen(x, float16{}); }
  static U16 narrow(const F32* part) { return FASTOPT_ISA::narrow(part[0], float16{}); }
};

// The upper halves of the bits are x rounded to nearest, ties to even; of `quiet` also where x is
// NaN: every NaN becomes the quiet one that torch writes.
inline U32 upper_rounded(F32 x) {
  const U32 bits = (U32)x;
  return bits + 0x7fff + ((bits >> 16) & 1);
}
inline U32 quiet(F32 x) { return (I32)(x == x) ? upper_rounded(x) : U32{} + 0x7fc00000; }

// bfloat16 is the upper half of a float32. So a whole register of them is two vectors, the even
// numbers and the odd ones, each already in its lane: no instruction moves a number to another one.
template <>
struct Storage<bfloat16> {
  using Raw = U32;
  using Compute = F32;
  static constexpr int kParts = 2;
  static constexpr int element(int part, int lane) { return 2 * lane + part; }
  static F32 widen(U32 x, int part) { return (F32)(part ? x & 0xffff0000 : x << 16); }
  // NaNs are looked for in both parts at once: a select in each took 12 ns per 16 elements of Adam
  // where this branch takes 10 (AVX2 on a Xeon, in the caches; 14 with the numbers in their order).
  static U32 narrow(const F32* part) {
    return rarely(any_nan(part[0], part[1]))
               ? upper_halves(quiet(part[0]), quiet(part[1]))
               : upper_halves(upper_rounded(part[0]), upper_rounded(part[1]));
  }
};

// The same in the order of memory, where an order is asked for.
template <class E>
struct Ordered : Storage<E> {};
template <>
struct Ordered<bfloat16> : InOrder<U16, F32> {
  static F32 widen(U16 x, int) { return (F32)(zero_extend(x) << 16); }
  static U16 narrow(const F32* part) { return __builtin_convertvector(quiet(part[0]) >> 16, U16); }
};

template <class E>
using Compute = typename Storage<E>::Compute;

template <class E>
using Number = decltype(Compute<E>{}[0] + 0);

// How many numbers a vector holds, and a register of them as it is stored.
template <class E>
constexpr int kLanes = sizeof(Compute<E>) / sizeof(Number<E>);
template <class E>
constexpr int kNumbers = kLanes<E> * Storage<E>::kParts;

// All numbers of a register, at any alignment; `S` is the storage.
struct Full {
  template <class S, class E>
  static typename S::Raw load(const E* at) {
    typename S::Raw raw;
    __builtin_memcpy(&raw, at, sizeof raw);
    return raw;
  }
  template <class S, class E>
  static void store(E* at, typename S::Raw raw) {
    __builtin_memcpy(at, &raw, sizeof raw);
  }
};

// The first `count` of them: what a tail has left. Memory beyond is neither read nor written.
struct Partial {
  int64_t count;
  template <class S, class E>
  typename S::Raw load(const E* at) const {
    typename S::Raw raw{};
    __builtin_memcpy(&raw, at, count * sizeof(E));
    return raw;
  }
  template <class S, class E>
  void store(E* at, typename S::Raw raw) const {
    __builtin_memcpy(at, &raw, count * sizeof(E));
  }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
