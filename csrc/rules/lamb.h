// LAMB: scalars, names, then the update.
//
// Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes" (2020),
// algorithm 2. torch has no LAMB: the roundings are those of the same operations of torch's, one
// after another (fastopt/optim/lamb.py), but that the trust ratio is computed in double.
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace lamb {

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, bias_correction, always_adapt;
};

struct Scalars {
  double lr, lerp_weight, beta2, square_weight, avg_scale, correction, eps, weight_decay,
      trust_ratio;
};

inline Scalars scalars(const Hyper& h, double step, bool) {
  const bool corrects = h.bias_correction != 0;
  const bool adapts = h.weight_decay != 0 || h.always_adapt != 0;
  return {
      h.lr,
      1 - h.beta1,
      h.beta2,
      1 - h.beta2,
      corrects ? 1 / (1 - ::pow(h.beta1, step)) : 1,
      corrects ? ::sqrt(1 - ::pow(h.beta2, step)) : 1,
      h.eps,
      h.weight_decay,
      adapts ? 1.0 : 0.0,
  };
}

// Where there is nothing to compare, and where it is not asked for, the update is Adam's.
inline void measured(double weight_norm, double norm, Scalars& s) {
  const bool adapts = s.trust_ratio != 0 && weight_norm > 0 && norm > 0;
  s.trust_ratio = adapts ? weight_norm / norm : 1;
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "lamb",
    {"lr", {"betas", 2}, "eps", "weight_decay", "bias_correction", "always_adapt"},
    {"step"},
    false,
    1,
    Numbers<variant>::of,
    {{"exp_avg", {"exp_avg_sq", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"lr", "lerp_weight", "beta2", "square_weight", "avg_scale", "correction", "eps",
     "weight_decay", "trust_ratio"},
    Numbers<measured>::of,
};

struct Lamb {
  using Scalars = lamb::Scalars;
  static constexpr int kStates = 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V minus_lr, beta2, square_weight, avg_scale, correction, reciprocal, eps, weight_decay,
        trust_ratio;
    Lerp<V> lerp;
    bool decays;

    explicit Update(const Scalars& s)
        : minus_lr(splat<V>(-s.lr)),
          beta2(splat<V>(s.beta2)),
          square_weight(splat<V>(s.square_weight)),
          avg_scale(splat<V>(s.avg_scale)),
          correction(splat<V>(s.correction)),
          reciprocal(splat<V>(1) / correction),
          eps(splat<V>(s.eps)),
          weight_decay(splat<V>(s.weight_decay)),
          trust_ratio(splat<V>(s.trust_ratio)),
          lerp(s.lerp_weight),
          decays(s.weight_decay != 0) {}

    // What is added to the parameter, but for its length; advances the states.
    V measured(V p, V g, V* state) const {
      V& exp_avg = state[0];
      V& exp_avg_sq = state[1];
      exp_avg = lerp(exp_avg, g);
      exp_avg_sq = fma(square_weight * g, g, beta2 * exp_avg_sq);
      const V denom = divide(sqrt(exp_avg_sq), correction, reciprocal) + eps;
      const V update = avg_scale * exp_avg / denom;
      return decays ? fma(weight_decay, p, update) : update;
    }

    void operator()(V& p, V g, V* state) const {
      p = fma(minus_lr, trust_ratio * measured(p, g, state), p);
    }
  };
};

using All = List<Lamb>;

}  // namespace lamb
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
