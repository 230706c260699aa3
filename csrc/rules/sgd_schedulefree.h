// Schedule-free SGD: scalars, names, then the update.
//
// A. Defazio et al., "The road less scheduled" (2024). The parameter holds the point at which
// gradients are taken. torch has no such class: the roundings are those of the same operations of
// torch's, one after another (fastopt/optim/schedulefree.py).
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace sgd_schedulefree {

struct Hyper {
  double lr, momentum, weight_decay, warmup_steps, r, weight_lr_power;
};

struct Scalars {
  double weight_decay, average_weight, step_size, lr;
};

// The learning rate of a step.
inline double warmed_up(double lr, double step, double warmup_steps) {
  return step - 1 < warmup_steps ? lr * (step / warmup_steps) : lr;
}

// The weight with which z goes into the average: its share of all weights so far.
inline double average_weight(double lr, double step, double r, double weight_lr_power,
                             Carried& lr_max, Carried& weight_sum) {
  const double size = lr_max.rounded(lr);
  if (size > lr_max.value) lr_max.value = size;
  const double weight = weight_sum.rounded(::pow(step, r) * ::pow(lr_max.value, weight_lr_power));
  weight_sum.add(weight);
  return weight_sum.value != 0 ? weight / weight_sum.value : 0;
}

inline Scalars scalars(const Hyper& h, double step, bool, Carried& lr_max, Carried& weight_sum) {
  const double lr = warmed_up(h.lr, step, h.warmup_steps);
  const double part = average_weight(lr, step, h.r, h.weight_lr_power, lr_max, weight_sum);
  return {h.weight_decay, part, lr * (h.momentum * (1 - part) - 1), lr};
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "sgd_schedulefree",
    {"lr", "momentum", "weight_decay", "warmup_steps", "r", "weight_lr_power"},
    {"step", {"lr_max", -1}, "weight_sum"},
    false,
    1,
    Numbers<variant>::of,
    {{{"z", kOfParam, Rule::kExact}}},  // weights: they are what the training is for
    Numbers<scalars>::of,
    {"weight_decay", "average_weight", "step_size", "lr"},
};

struct SgdScheduleFree {
  using Scalars = sgd_schedulefree::Scalars;
  static constexpr int kStates = 1;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V weight_decay, step_size, minus_lr;
    Lerp<V> average;
    bool decays;

    explicit Update(const Scalars& s)
        : weight_decay(splat<V>(s.weight_decay)),
          step_size(splat<V>(s.step_size)),
          minus_lr(splat<V>(-s.lr)),
          average(s.average_weight),
          decays(s.weight_decay != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& z = state[0];
      if (decays) g = fma(weight_decay, p, g);
      p = fma(step_size, g, average(p, z));
      z = fma(minus_lr, g, z);
    }
  };
};

using All = List<SgdScheduleFree>;

}  // namespace sgd_schedulefree
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
