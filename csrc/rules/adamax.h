// Adamax: scalars, names, then the update.
//
// D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015), section 7.1. The
// roundings are those of torch's for-loop; there is no square root.
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace adamax {

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay;
};

struct Scalars {
  double weight_decay, lerp_weight, beta2, eps, step_size;
};

inline Scalars scalars(const Hyper& h, double step, bool) {
  return {h.weight_decay, 1 - h.beta1, h.beta2, h.eps, h.lr / (1 - ::pow(h.beta1, step))};
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "adamax",
    {"lr", {"betas", 2}, "eps", "weight_decay"},
    {"step"},
    false,
    1,
    Numbers<variant>::of,
    // Its maximum decays, by less than half a code a step: to nearest it never would. Nor does
    // noise push it upwards: between two steps of the code it stays or takes the lower one.
    {{"exp_avg", {"exp_inf", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"weight_decay", "lerp_weight", "beta2", "eps", "step_size"},
};

struct Adamax {
  using Scalars = adamax::Scalars;
  static constexpr int kStates = 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V weight_decay, beta2, eps, step_size;
    Lerp<V> lerp;
    bool decays;

    explicit Update(const Scalars& s)
        : weight_decay(splat<V>(s.weight_decay)),
          beta2(splat<V>(s.beta2)),
          eps(splat<V>(s.eps)),
          step_size(splat<V>(s.step_size)),
          lerp(s.lerp_weight),
          decays(s.weight_decay != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg = state[0];
      V& exp_inf = state[1];
      if (decays) g = fma(weight_decay, p, g);
      exp_avg = lerp(exp_avg, g);
      exp_inf = maximum(beta2 * exp_inf, (g < 0 ? -g : g) + eps);
      p -= step_size * exp_avg / exp_inf;
    }
  };
};

using All = List<Adamax>;

}  // namespace adamax
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
