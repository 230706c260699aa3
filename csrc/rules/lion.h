// Lion: scalars, names, then the update.
//
// X. Chen et al., "Symbolic discovery of optimization algorithms" (2023), algorithm 2. torch has no
// Lion: the roundings are those of the same operations of torch's, one after another
// (fastopt/optim/lion.py).
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace lion {

struct Hyper {
  double lr, beta1, beta2, weight_decay;
};

struct Scalars {
  double decay, lr, beta1, update_weight, beta2, grad_weight;
};

inline Scalars scalars(const Hyper& h, double, bool) {
  return {
      Decay(h.lr, h.weight_decay, true).factor, h.lr, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2,
  };
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "lion",
    {"lr", {"betas", 2}, "weight_decay"},
    {},
    false,
    1,
    Numbers<variant>::of,
    {{"exp_avg"}},
    Numbers<scalars>::of,
    {"decay", "lr", "beta1", "update_weight", "beta2", "grad_weight"},
};

struct Lion {
  using Scalars = lion::Scalars;
  static constexpr int kStates = 1;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, lr, beta1, update_weight, beta2, grad_weight;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          lr(splat<V>(s.lr)),
          beta1(splat<V>(s.beta1)),
          update_weight(splat<V>(s.update_weight)),
          beta2(splat<V>(s.beta2)),
          grad_weight(splat<V>(s.grad_weight)) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg = state[0];
      p *= decay;  // exact without weight decay: 1
      const V update = fma(update_weight, g, beta1 * exp_avg);
      p -= update > 0 ? lr : update < 0 ? -lr : V{};  // as torch.sign: 0 for NaN
      exp_avg = fma(grad_weight, g, beta2 * exp_avg);
    }
  };
};

using All = List<Lion>;

}  // namespace lion
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
