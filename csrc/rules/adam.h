// Adam and AdamW: scalars, names, then the update with and without AMSGrad's running maximum.
//
// D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015); I. Loshchilov and
// F. Hutter, "Decoupled weight decay regularization" (2019); S. Reddi, S. Kale and S. Kumar, "On
// the convergence of Adam and beyond" (2018). The roundings are those of torch's `fused=True`.
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace adam {

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay, eps_in_sqrt;
};

struct Scalars {
  double decay, weight_decay, lerp_weight, beta2, square_weight, bias_correction2_sqrt, step_size,
      eps, eps_in_sqrt;
};

inline Scalars scalars(const Hyper& h, double step, bool) {
  const Decay decay(h.lr, h.weight_decay, h.decoupled_weight_decay);
  const bool inside = h.eps_in_sqrt;
  const double bias_correction2 = 1 - ::pow(h.beta2, step);
  return {
      decay.factor,
      decay.weight,
      1 - h.beta1,
      h.beta2,
      1 - h.beta2,
      ::sqrt(bias_correction2),
      h.lr / (1 - ::pow(h.beta1, step)),
      inside ? 0 : h.eps,
      inside ? h.eps * bias_correction2 : 0,
  };
}

inline int variant(const Hyper& h) { return h.amsgrad != 0; }

constexpr Rule kRule = {
    "adam",
    {"lr",
     {"betas", 2},
     "eps",
     "weight_decay",
     "amsgrad",
     "decoupled_weight_decay",
     Rule::optional("eps_in_sqrt")},
    {"step"},
    false,
    2,
    Numbers<variant>::of,
    {{"exp_avg", {"exp_avg_sq", Rule::kPositive}},
     {"exp_avg", {"exp_avg_sq", Rule::kPositive}, {"max_exp_avg_sq", Rule::kMaximum}}},
    Numbers<scalars>::of,
    {"decay", "weight_decay", "lerp_weight", "beta2", "square_weight", "bias_correction2_sqrt",
     "step_size", "eps", "eps_in_sqrt"},
};

template <bool kAmsgrad>
struct Adam {
  using Scalars = adam::Scalars;
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, weight_decay, beta2, square_weight, root, reciprocal_root, step_size, eps, eps_in_sqrt;
    Lerp<V> lerp;
    bool decays, roots_eps;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          weight_decay(splat<V>(s.weight_decay)),
          beta2(splat<V>(s.beta2)),
          square_weight(splat<V>(s.square_weight)),
          root(splat<V>(s.bias_correction2_sqrt)),
          reciprocal_root(splat<V>(1) / root),
          step_size(splat<V>(s.step_size)),
          eps(splat<V>(s.eps)),
          eps_in_sqrt(splat<V>(s.eps_in_sqrt)),
          lerp(s.lerp_weight),
          decays(s.weight_decay != 0),
          roots_eps(s.eps_in_sqrt != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg = state[0];
      V& exp_avg_sq = state[1];
      p *= decay;  // exact for Adam: 1
      if (decays) g = fma(weight_decay, p, g);
      exp_avg = lerp(exp_avg, g);
      exp_avg_sq = fma(square_weight * g, g, beta2 * exp_avg_sq);
      V square = exp_avg_sq;
      if constexpr (kAmsgrad) square = state[2] = maximum(state[2], exp_avg_sq);
      // eps under the root of the corrected square: sqrt(v / c + eps) = sqrt(v + eps * c) /
      // sqrt(c).
      if (roots_eps) square += eps_in_sqrt;
      const V denom = divide(sqrt(square), root, reciprocal_root) + eps;
      p -= step_size * exp_avg / denom;
    }
  };
};

using All = List<Adam<false>, Adam<true>>;

}  // namespace adam
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
