// Adadelta: scalars, names, then the update.
//
// M. D. Zeiler, "ADADELTA: an adaptive learning rate method" (2012). The roundings are those of
// torch's for-loop but for its square root, see rmsprop.h.
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace adadelta {

struct Hyper {
  double lr, rho, eps, weight_decay;
};

struct Scalars {
  double lr, rho, square_weight, eps, weight_decay;
};

inline Scalars scalars(const Hyper& h, double, bool) {
  return {h.lr, h.rho, 1 - h.rho, h.eps, h.weight_decay};
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "adadelta",
    {"lr", "rho", "eps", "weight_decay"},
    {"step"},
    false,
    1,
    Numbers<variant>::of,
    {{{"square_avg", Rule::kPositive}, {"acc_delta", Rule::kPositive}}},
    Numbers<scalars>::of,
    {"lr", "rho", "square_weight", "eps", "weight_decay"},
};

struct Adadelta {
  using Scalars = adadelta::Scalars;
  static constexpr int kStates = 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V minus_lr, rho, square_weight, eps, weight_decay;
    bool decays;

    explicit Update(const Scalars& s)
        : minus_lr(splat<V>(-s.lr)),
          rho(splat<V>(s.rho)),
          square_weight(splat<V>(s.square_weight)),
          eps(splat<V>(s.eps)),
          weight_decay(splat<V>(s.weight_decay)),
          decays(s.weight_decay != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& square_avg = state[0];
      V& acc_delta = state[1];
      if (decays) g = fma(weight_decay, p, g);
      square_avg = fma(square_weight * g, g, rho * square_avg);
      const V delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g;
      acc_delta = fma(square_weight * delta, delta, rho * acc_delta);
      p = fma(minus_lr, delta, p);
    }
  };
};

using All = List<Adadelta>;

}  // namespace adadelta
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
