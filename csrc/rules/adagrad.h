// Adagrad: scalars, names, then the update.
//
// J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and
// stochastic optimization" (2011). The roundings are those of torch's for-loop but for its square
// root, see rmsprop.h.
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace adagrad {

struct Hyper {
  double lr, lr_decay, weight_decay, initial_accumulator_value, eps;
};

struct Scalars {
  double lr, weight_decay, eps;
};

inline Scalars scalars(const Hyper& h, double step, bool) {
  return {h.lr / (1 + (step - 1) * h.lr_decay), h.weight_decay, h.eps};
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "adagrad",
    {"lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"},
    {"step"},
    true,
    1,
    Numbers<variant>::of,
    {{{"sum", "initial_accumulator_value", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"lr", "weight_decay", "eps"},
};

struct Adagrad {
  using Scalars = adagrad::Scalars;
  static constexpr int kStates = 1;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V lr, weight_decay, eps;
    bool decays;

    explicit Update(const Scalars& s)
        : lr(splat<V>(s.lr)),
          weight_decay(splat<V>(s.weight_decay)),
          eps(splat<V>(s.eps)),
          decays(s.weight_decay != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& sum = state[0];
      if (decays) g = fma(weight_decay, p, g);
      sum = fma(g, g, sum);
      p -= lr * g / (sqrt(sum) + eps);
    }
  };
};

using All = List<Adagrad>;

}  // namespace adagrad
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
