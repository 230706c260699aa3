// NAdam: scalars, names, then the update.
//
// T. Dozat, "Incorporating Nesterov momentum into Adam" (2016); the decay of its momentum: I.
// Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013);
// decoupled weight decay: I. Loshchilov and F. Hutter (2019). The roundings are those of torch's
// for-loop but for its square root, see rmsprop.h.
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace nadam {

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay;
};

struct Scalars {
  double decay, weight_decay, lerp_weight, beta2, square_weight, bias_correction2, grad_size,
      avg_size, eps;
};

// The momentum of a step: it grows from near beta1 / 2 to beta1.
inline double momentum(const Hyper& h, double step) {
  return h.beta1 * (1 - 0.5 * ::pow(0.96, step * h.momentum_decay));
}

inline Scalars scalars(const Hyper& h, double step, bool, Carried& mu_product) {
  const Decay decay(h.lr, h.weight_decay, h.decoupled_weight_decay);
  const double mu = momentum(h, step), mu_next = momentum(h, step + 1);
  mu_product.multiply(mu);
  return {
      decay.factor,
      decay.weight,
      1 - h.beta1,
      h.beta2,
      1 - h.beta2,
      1 - ::pow(h.beta2, step),
      h.lr * (1 - mu) / (1 - mu_product.value),
      h.lr * mu_next / (1 - mu_product.value * mu_next),
      h.eps,
  };
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "nadam",
    {"lr", {"betas", 2}, "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"},
    {"step", {"mu_product", 1}},
    false,
    1,
    Numbers<variant>::of,
    {{"exp_avg", {"exp_avg_sq", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"decay", "weight_decay", "lerp_weight", "beta2", "square_weight", "bias_correction2",
     "grad_size", "avg_size", "eps"},
};

struct Nadam {
  using Scalars = nadam::Scalars;
  static constexpr int kStates = 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, weight_decay, beta2, square_weight, bias_correction2, grad_size, avg_size, eps;
    Lerp<V> lerp;
    bool decays;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          weight_decay(splat<V>(s.weight_decay)),
          beta2(splat<V>(s.beta2)),
          square_weight(splat<V>(s.square_weight)),
          bias_correction2(splat<V>(s.bias_correction2)),
          grad_size(splat<V>(s.grad_size)),
          avg_size(splat<V>(s.avg_size)),
          eps(splat<V>(s.eps)),
          lerp(s.lerp_weight),
          decays(s.weight_decay != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg = state[0];
      V& exp_avg_sq = state[1];
      p *= decay;  // exact where it is not decoupled: 1
      if (decays) g = fma(weight_decay, p, g);
      exp_avg = lerp(exp_avg, g);
      exp_avg_sq = fma(square_weight * g, g, beta2 * exp_avg_sq);
      // A true division: the square may be subnormal, where divide() has other bits.
      const V denom = sqrt(exp_avg_sq / bias_correction2) + eps;
      p -= grad_size * g / denom;
      p -= avg_size * exp_avg / denom;
    }
  };
};

using All = List<Nadam>;

}  // namespace nadam
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
