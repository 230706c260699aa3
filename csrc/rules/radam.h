// RAdam: scalars, names, then the update.
//
// L. Liu et al., "On the variance of the adaptive learning rate and beyond" (2020); decoupled
// weight decay: I. Loshchilov and F. Hutter (2019). The roundings are those of torch's for-loop but
// for its square root, see rmsprop.h.
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace radam {

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay;
};

struct Scalars {
  double decay, weight_decay, lerp_weight, beta2, square_weight, bias_correction1, lr,
      bias_correction2_sqrt, rectification, eps;
};

// By the length of the average that the square is, rho; 0 where it is too short for the square to
// have a variance. Python's `x ** 0.5`, as torch has it, is libm's pow.
inline double rectification(double beta2, double step, double power) {
  const double rho_inf = 2 / (1 - beta2) - 1;
  const double rho = rho_inf - 2 * step * power / (1 - power);
  if (!(rho > 5)) return 0;
  return ::pow((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho), 0.5);
}

inline Scalars scalars(const Hyper& h, double step, bool) {
  const Decay decay(h.lr, h.weight_decay, h.decoupled_weight_decay);
  const double power = ::pow(h.beta2, step);
  return {
      decay.factor, decay.weight,          1 - h.beta1,
      h.beta2,      1 - h.beta2,           1 - ::pow(h.beta1, step),
      h.lr,         ::pow(1 - power, 0.5), rectification(h.beta2, step, power),
      h.eps,
  };
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "radam",
    {"lr", {"betas", 2}, "eps", "weight_decay", "decoupled_weight_decay"},
    {"step"},
    false,
    1,
    Numbers<variant>::of,
    {{"exp_avg", {"exp_avg_sq", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"decay", "weight_decay", "lerp_weight", "beta2", "square_weight", "bias_correction1", "lr",
     "bias_correction2_sqrt", "rectification", "eps"},
};

struct Radam {
  using Scalars = radam::Scalars;
  static constexpr int kStates = 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, weight_decay, beta2, square_weight, bias_correction1, lr, root, rectification, eps;
    Lerp<V> lerp;
    bool decays, rectifies;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          weight_decay(splat<V>(s.weight_decay)),
          beta2(splat<V>(s.beta2)),
          square_weight(splat<V>(s.square_weight)),
          bias_correction1(splat<V>(s.bias_correction1)),
          lr(splat<V>(s.lr)),
          root(splat<V>(s.bias_correction2_sqrt)),
          rectification(splat<V>(s.rectification)),
          eps(splat<V>(s.eps)),
          lerp(s.lerp_weight),
          decays(s.weight_decay != 0),
          rectifies(s.rectification != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg = state[0];
      V& exp_avg_sq = state[1];
      p *= decay;  // exact where it is not decoupled: 1
      if (decays) g = fma(weight_decay, p, g);
      exp_avg = lerp(exp_avg, g);
      exp_avg_sq = fma(square_weight * g, g, beta2 * exp_avg_sq);
      V update = exp_avg / bias_correction1 * lr;
      // torch divides a number by a tensor as the number times the tensor's reciprocal.
      if (rectifies) {
        update = update * (splat<V>(1) / (sqrt(exp_avg_sq) + eps) * root) * rectification;
      }
      p -= update;
    }
  };
};

using All = List<Radam>;

}  // namespace radam
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
