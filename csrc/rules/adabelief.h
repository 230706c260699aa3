// AdaBelief: scalars, names, then the update with and without AMSGrad's running maximum.
//
// J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients"
// (2020); S. Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond" (2018). torch has
// no AdaBelief: the roundings are those of the same operations of torch's, one after another
// (fastopt/optim/adabelief.py).
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace adabelief {

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay;
};

struct Scalars {
  double decay, weight_decay, lerp_weight, beta2, square_weight, bias_correction2_sqrt, step_size,
      eps;
};

inline Scalars scalars(const Hyper& h, double step, bool) {
  const Decay decay(h.lr, h.weight_decay, h.decoupled_weight_decay);
  return {
      decay.factor,
      decay.weight,
      1 - h.beta1,
      h.beta2,
      1 - h.beta2,
      ::sqrt(1 - ::pow(h.beta2, step)),
      h.lr / (1 - ::pow(h.beta1, step)),
      h.eps,
  };
}

inline int variant(const Hyper& h) { return h.amsgrad != 0; }

constexpr Rule kRule = {
    "adabelief",
    {"lr", {"betas", 2}, "eps", "weight_decay", "amsgrad", "decoupled_weight_decay"},
    {"step"},
    false,
    2,
    Numbers<variant>::of,
    {{"exp_avg", {"exp_avg_var", Rule::kPositive}},
     {"exp_avg", {"exp_avg_var", Rule::kPositive}, {"max_exp_avg_var", Rule::kMaximum}}},
    Numbers<scalars>::of,
    {"decay", "weight_decay", "lerp_weight", "beta2", "square_weight", "bias_correction2_sqrt",
     "step_size", "eps"},
};

template <bool kAmsgrad>
struct AdaBelief {
  using Scalars = adabelief::Scalars;
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, weight_decay, beta2, square_weight, root, reciprocal_root, step_size, eps;
    Lerp<V> lerp;
    bool decays;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          weight_decay(splat<V>(s.weight_decay)),
          beta2(splat<V>(s.beta2)),
          square_weight(splat<V>(s.square_weight)),
          root(splat<V>(s.bias_correction2_sqrt)),
          reciprocal_root(splat<V>(1) / root),
          step_size(splat<V>(s.step_size)),
          eps(splat<V>(s.eps)),
          lerp(s.lerp_weight),
          decays(s.weight_decay != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg = state[0];
      V& exp_avg_var = state[1];
      p *= decay;  // exact where it is not decoupled: 1
      if (decays) g = fma(weight_decay, p, g);
      exp_avg = lerp(exp_avg, g);
      const V rest = g - exp_avg;
      exp_avg_var = fma(square_weight * rest, rest, beta2 * exp_avg_var) + eps;
      V square = exp_avg_var;
      if constexpr (kAmsgrad) square = state[2] = maximum(state[2], exp_avg_var);
      const V denom = divide(sqrt(square), root, reciprocal_root) + eps;
      p -= step_size * exp_avg / denom;
    }
  };
};

using All = List<AdaBelief<false>, AdaBelief<true>>;

}  // namespace adabelief
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
