// AdEMAMix: scalars, names, then the update.
//
// M. Pagliardini, P. Ablin and D. Grangier, "The AdEMAMix optimizer: better, faster, older" (2024).
// torch has no AdEMAMix: the roundings are those of the same operations of torch's, one after
// another (fastopt/optim/ademamix.py).
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace ademamix {

struct Hyper {
  double lr, beta1, beta2, beta3, alpha, eps, weight_decay, beta3_warmup, alpha_warmup;
};

struct Scalars {
  double decay, fast_weight, slow_weight, beta2, square_weight, bias_correction2_sqrt, fast_size,
      slow_size, eps;
};

// The half-life of an average, less one step.
inline double half_life(double beta) { return ::log(0.5) / ::log(beta + 1e-8) - 1; }

// It grows in a line from that of beta1 to that of beta3.
inline double slow_beta(const Hyper& h, double step) {
  if (!(step < h.beta3_warmup)) return h.beta3;
  const double part = step / h.beta3_warmup;
  return ::pow(0.5, 1 / ((1 - part) * half_life(h.beta1) + part * half_life(h.beta3) + 1));
}

inline Scalars scalars(const Hyper& h, double step, bool) {
  const double part = step < h.alpha_warmup ? step / h.alpha_warmup : 1;
  return {
      Decay(h.lr, h.weight_decay, true).factor,
      1 - h.beta1,
      1 - slow_beta(h, step),
      h.beta2,
      1 - h.beta2,
      ::sqrt(1 - ::pow(h.beta2, step)),
      h.lr / (1 - ::pow(h.beta1, step)),
      h.lr * (part * h.alpha),
      h.eps,
  };
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "ademamix",
    {"lr",
     {"betas", 3},
     "alpha",
     "eps",
     "weight_decay",
     Rule::optional("beta3_warmup"),
     Rule::optional("alpha_warmup")},
    {"step"},
    false,
    1,
    Numbers<variant>::of,
    // An average over 10,000 steps adds up the noise of as many roundings: an error of 0.4 of it in
    // 8 bits, 0.12 in bfloat16 (root mean squares, of gradients whose mean is a tenth of theirs).
    {{"exp_avg_fast", {"exp_avg_slow", Rule::kExact}, {"exp_avg_sq", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"decay", "fast_weight", "slow_weight", "beta2", "square_weight", "bias_correction2_sqrt",
     "fast_size", "slow_size", "eps"},
};

struct AdEMAMix {
  using Scalars = ademamix::Scalars;
  static constexpr int kStates = 3;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, beta2, square_weight, root, reciprocal_root, fast_size, slow_size, eps;
    Lerp<V> fast_lerp, slow_lerp;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          beta2(splat<V>(s.beta2)),
          square_weight(splat<V>(s.square_weight)),
          root(splat<V>(s.bias_correction2_sqrt)),
          reciprocal_root(splat<V>(1) / root),
          fast_size(splat<V>(s.fast_size)),
          slow_size(splat<V>(s.slow_size)),
          eps(splat<V>(s.eps)),
          fast_lerp(s.fast_weight),
          slow_lerp(s.slow_weight) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg_fast = state[0];
      V& exp_avg_slow = state[1];
      V& exp_avg_sq = state[2];
      p *= decay;  // exact without weight decay: 1
      exp_avg_fast = fast_lerp(exp_avg_fast, g);
      exp_avg_slow = slow_lerp(exp_avg_slow, g);
      exp_avg_sq = fma(square_weight * g, g, beta2 * exp_avg_sq);
      const V denom = divide(sqrt(exp_avg_sq), root, reciprocal_root) + eps;
      p -= fma(slow_size, exp_avg_slow, fast_size * exp_avg_fast) / denom;
    }
  };
};

using All = List<AdEMAMix>;

}  // namespace ademamix
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
