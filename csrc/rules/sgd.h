// SGD: scalars, names, then the update with and without a momentum buffer.
//
// Every rounding is that of torch's for-loop (`foreach=False`), whose results it reproduces bit for
// bit in float32 and float64 where torch's kernels have fused multiply-adds (docs/numerics.md).
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {

struct SgdHyper {
  double lr, momentum, dampening, weight_decay, nesterov, decoupled_weight_decay;
};

struct SgdScalars {
  double decay, lr, momentum, grad_weight, weight_decay, nesterov, first;
};

inline void sgd_scalars(const double* numbers, double, bool first, double* out) {
  const auto h = named<SgdHyper>(numbers);
  const bool apart = h.decoupled_weight_decay != 0;
  const SgdScalars scalars = {
      apart ? 1 - h.lr * h.weight_decay : 1,
      h.lr,
      h.momentum,
      1 - h.dampening,
      apart ? 0 : h.weight_decay,
      h.nesterov,
      double(first),
  };
  __builtin_memcpy(out, &scalars, sizeof scalars);
}

constexpr Rule kSgd = {
    "sgd",
    {"lr", "momentum", "dampening", "weight_decay", "nesterov", "decoupled_weight_decay"},
    false,
    2,
    [](const double* numbers) { return int(named<SgdHyper>(numbers).momentum != 0); },
    {{}, {"momentum_buffer"}},
    sgd_scalars,
    {"decay", "lr", "momentum", "grad_weight", "weight_decay", "nesterov", "first"},
};

template <bool kMomentum>
struct Sgd {
  using Hyper = SgdHyper;
  using Scalars = SgdScalars;
  static constexpr int kStates = kMomentum;
  // Its loop is short enough for the processor to run ahead by itself: asking for memory too took
  // 5 % more time over 64M elements (28.7 ms against 27.3).
  static constexpr bool kPrefetch = false;

  template <class V>
  struct Update {
    V decay, minus_lr, momentum, grad_weight, weight_decay;
    bool shrinks, decays, nesterov, first;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          minus_lr(splat<V>(-s.lr)),
          momentum(splat<V>(s.momentum)),
          grad_weight(splat<V>(s.grad_weight)),
          weight_decay(splat<V>(s.weight_decay)),
          shrinks(s.decay != 1),
          decays(s.weight_decay != 0),
          nesterov(s.nesterov != 0),
          first(s.first != 0) {}

    void operator()(V& p, V g, V* state) const {
      if (shrinks) p *= decay;
      if (decays) g = fma(weight_decay, p, g);
      if constexpr (kMomentum) {
        V& buffer = state[0];
        buffer = first ? g : fma(grad_weight, g, momentum * buffer);
        g = nesterov ? fma(momentum, buffer, g) : buffer;
      }
      p = fma(minus_lr, g, p);
    }
  };
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
