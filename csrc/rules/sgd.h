// SGD: scalars, names, then the update with and without a momentum buffer.
//
// Every rounding is that of torch's for-loop (`foreach=False`), whose results it reproduces bit for
// bit in float32 and float64 where torch's kernels have fused multiply-adds (docs/numerics.md).
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace sgd {

struct Hyper {
  double lr, momentum, dampening, weight_decay, nesterov, decoupled_weight_decay;
};

struct Scalars {
  double decay, lr, momentum, grad_weight, weight_decay, nesterov, first;
};

inline Scalars scalars(const Hyper& h, double, bool first) {
  const Decay decay(h.lr, h.weight_decay, h.decoupled_weight_decay);
  return {
      decay.factor, h.lr, h.momentum, 1 - h.dampening, decay.weight, h.nesterov, double(first),
  };
}

inline int variant(const Hyper& h) { return h.momentum != 0; }

constexpr Rule kRule = {
    "sgd",
    {"lr", "momentum", "dampening", "weight_decay", "nesterov",
     Rule::optional("decoupled_weight_decay")},
    {},
    true,
    2,
    Numbers<variant>::of,
    {{}, {{"momentum_buffer", kUnwritten}}},
    Numbers<scalars>::of,
    {"decay", "lr", "momentum", "grad_weight", "weight_decay", "nesterov", "first"},
};

template <bool kMomentum>
struct Sgd {
  using Scalars = sgd::Scalars;
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

using All = List<Sgd<false>, Sgd<true>>;

}  // namespace sgd
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
