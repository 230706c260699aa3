// Adan: scalars, names, then the update.
//
// X. Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models"
// (2022). torch has no Adan: the roundings are those of the same operations of torch's, one after
// another (fastopt/optim/adan.py).
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace adan {

struct Hyper {
  double lr, beta1, beta2, beta3, eps, weight_decay, no_prox;
};

struct Scalars {
  double decay, shrinkage, avg_weight, diff_weight, beta2, beta3, square_weight,
      bias_correction3_sqrt, avg_size, diff_size, eps, first;
};

inline Scalars scalars(const Hyper& h, double step, bool) {
  return {
      Decay(h.lr, h.weight_decay, h.no_prox).factor,
      h.no_prox ? 1 : 1 / (1 + h.lr * h.weight_decay),
      1 - h.beta1,
      1 - h.beta2,
      h.beta2,
      h.beta3,
      1 - h.beta3,
      ::sqrt(1 - ::pow(h.beta3, step)),
      h.lr / (1 - ::pow(h.beta1, step)),
      h.lr * h.beta2 / (1 - ::pow(h.beta2, step)),
      h.eps,
      double(step == 1),
  };
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "adan",
    {"lr", {"betas", 3}, "eps", "weight_decay", "no_prox"},
    {"step"},
    false,
    1,
    Numbers<variant>::of,
    {{"exp_avg", {"exp_avg_sq", Rule::kPositive}, "exp_avg_diff", "neg_pre_grad"}},
    Numbers<scalars>::of,
    {"decay", "shrinkage", "avg_weight", "diff_weight", "beta2", "beta3", "square_weight",
     "bias_correction3_sqrt", "avg_size", "diff_size", "eps", "first"},
};

struct Adan {
  using Scalars = adan::Scalars;
  static constexpr int kStates = 4;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, shrinkage, beta2, beta3, square_weight, root, reciprocal_root, avg_size, diff_size,
        eps;
    Lerp<V> avg_lerp, diff_lerp;
    bool first;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          shrinkage(splat<V>(s.shrinkage)),
          beta2(splat<V>(s.beta2)),
          beta3(splat<V>(s.beta3)),
          square_weight(splat<V>(s.square_weight)),
          root(splat<V>(s.bias_correction3_sqrt)),
          reciprocal_root(splat<V>(1) / root),
          avg_size(splat<V>(s.avg_size)),
          diff_size(splat<V>(s.diff_size)),
          eps(splat<V>(s.eps)),
          avg_lerp(s.avg_weight),
          diff_lerp(s.diff_weight),
          first(s.first != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& exp_avg = state[0];
      V& exp_avg_sq = state[1];
      V& exp_avg_diff = state[2];
      V& neg_pre_grad = state[3];
      const V diff = first ? V{} : g + neg_pre_grad;
      neg_pre_grad = -g;
      exp_avg = avg_lerp(exp_avg, g);
      exp_avg_diff = diff_lerp(exp_avg_diff, diff);
      const V ahead = fma(beta2, diff, g);
      exp_avg_sq = fma(square_weight * ahead, ahead, beta3 * exp_avg_sq);
      const V denom = divide(sqrt(exp_avg_sq), root, reciprocal_root) + eps;
      p *= decay;  // exact but for no_prox: 1
      p -= fma(diff_size, exp_avg_diff, avg_size * exp_avg) / denom;
      p *= shrinkage;  // exact without weight decay: 1
    }
  };
};

using All = List<Adan>;

}  // namespace adan
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
