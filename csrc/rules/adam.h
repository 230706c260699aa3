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

struct AdamHyper {
  double lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay, eps_in_sqrt;
};

struct AdamScalars {
  double decay, weight_decay, lerp_weight, beta2, square_weight, bias_correction2_sqrt, step_size,
      eps, eps_in_sqrt;
};

inline void adam_scalars(const double* numbers, double step, bool, double* out) {
  const auto h = named<AdamHyper>(numbers);
  const bool adamw = h.decoupled_weight_decay != 0;
  const bool inside = h.eps_in_sqrt != 0;
  const double bias_correction2 = 1 - ::pow(h.beta2, step);
  const AdamScalars scalars = {
      adamw ? 1 - h.lr * h.weight_decay : 1,
      adamw ? 0 : h.weight_decay,
      1 - h.beta1,
      h.beta2,
      1 - h.beta2,
      ::sqrt(bias_correction2),
      h.lr / (1 - ::pow(h.beta1, step)),
      inside ? 0 : h.eps,
      inside ? h.eps * bias_correction2 : 0,
  };
  __builtin_memcpy(out, &scalars, sizeof scalars);
}

constexpr Rule kAdam = {
    "adam",
    {"lr", {"betas", 2}, "eps", "weight_decay", "amsgrad", "decoupled_weight_decay", "eps_in_sqrt"},
    true,
    2,
    [](const double* numbers) { return int(named<AdamHyper>(numbers).amsgrad != 0); },
    {{"exp_avg", "exp_avg_sq"}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}},
    adam_scalars,
    {"decay", "weight_decay", "lerp_weight", "beta2", "square_weight", "bias_correction2_sqrt",
     "step_size", "eps", "eps_in_sqrt"},
};

template <bool kAmsgrad>
struct Adam {
  using Hyper = AdamHyper;
  using Scalars = AdamScalars;
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

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
