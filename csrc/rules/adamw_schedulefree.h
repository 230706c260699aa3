// Schedule-free AdamW: scalars, names, then the update.
//
// A. Defazio et al., "The road less scheduled" (2024). The parameter holds the point at which
// gradients are taken. torch has no such class: the roundings are those of the same operations of
// torch's, one after another (fastopt/optim/schedulefree.py).
#pragma once

#include <math.h>

#include "sgd_schedulefree.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace adamw_schedulefree {

struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power;
};

struct Scalars {
  double weight_decay, beta2, square_weight, bias_correction2_sqrt, eps, average_weight, step_size,
      lr;
};

inline Scalars scalars(const Hyper& h, double step, bool, Carried& lr_max, Carried& weight_sum) {
  const double lr = sgd_schedulefree::warmed_up(h.lr, step, h.warmup_steps);
  const double part =
      sgd_schedulefree::average_weight(lr, step, h.r, h.weight_lr_power, lr_max, weight_sum);
  return {
      h.weight_decay,
      h.beta2,
      1 - h.beta2,
      ::sqrt(1 - ::pow(h.beta2, step)),
      h.eps,
      part,
      lr * (h.beta1 * (1 - part) - 1),
      lr,
  };
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "adamw_schedulefree",
    {"lr", {"betas", 2}, "eps", "weight_decay", "warmup_steps", "r", "weight_lr_power"},
    {"step", {"lr_max", -1}, "weight_sum"},
    false,
    1,
    Numbers<variant>::of,
    // z holds weights: they are what the training is for.
    {{{"z", kOfParam, Rule::kExact}, {"exp_avg_sq", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"weight_decay", "beta2", "square_weight", "bias_correction2_sqrt", "eps", "average_weight",
     "step_size", "lr"},
};

struct AdamwScheduleFree {
  using Scalars = adamw_schedulefree::Scalars;
  static constexpr int kStates = 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V weight_decay, beta2, square_weight, root, reciprocal_root, eps, step_size, minus_lr;
    Lerp<V> average;
    bool decays;

    explicit Update(const Scalars& s)
        : weight_decay(splat<V>(s.weight_decay)),
          beta2(splat<V>(s.beta2)),
          square_weight(splat<V>(s.square_weight)),
          root(splat<V>(s.bias_correction2_sqrt)),
          reciprocal_root(splat<V>(1) / root),
          eps(splat<V>(s.eps)),
          step_size(splat<V>(s.step_size)),
          minus_lr(splat<V>(-s.lr)),
          average(s.average_weight),
          decays(s.weight_decay != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& z = state[0];
      V& exp_avg_sq = state[1];
      exp_avg_sq = fma(square_weight * g, g, beta2 * exp_avg_sq);
      V update = g / (divide(sqrt(exp_avg_sq), root, reciprocal_root) + eps);
      if (decays) update = fma(weight_decay, p, update);
      p = fma(step_size, update, average(p, z));
      z = fma(minus_lr, update, z);
    }
  };
};

using All = List<AdamwScheduleFree>;

}  // namespace adamw_schedulefree
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
