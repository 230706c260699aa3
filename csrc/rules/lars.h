// LARS: scalars, names, then the update.
//
// Y. You, I. Gitman and B. Ginsburg, "Large batch training of convolutional networks" (2017),
// algorithm 1. torch has no LARS: the roundings are those of the same operations of torch's, one
// after another (fastopt/optim/lars.py), but that the local rate is computed in double.
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace lars {

struct Hyper {
  double lr, momentum, weight_decay, nesterov, trust_coefficient, eps, always_adapt;
};

struct Scalars {
  double lr, momentum, weight_decay, nesterov, trust_coefficient, eps, adapts, rate;
};

inline Scalars scalars(const Hyper& h, double, bool) {
  const bool adapts = h.weight_decay != 0 || h.always_adapt != 0;
  return {
      h.lr, h.momentum, h.weight_decay, h.nesterov, h.trust_coefficient, h.eps, adapts ? 1.0 : 0.0,
      h.lr};
}

// Where there is nothing to compare, and where it is not asked for, the rate is SGD's.
inline void measured(double weight_norm, double norm, Scalars& s) {
  if (s.adapts == 0 || !(weight_norm > 0 && norm > 0)) return;
  s.rate =
      s.lr * (s.trust_coefficient * weight_norm / (norm + s.weight_decay * weight_norm + s.eps));
}

inline int variant(const Hyper& h) { return h.momentum != 0; }

constexpr Rule kRule = {
    "lars",
    {"lr", "momentum", "weight_decay", "nesterov", "trust_coefficient", "eps", "always_adapt"},
    {},
    false,
    2,
    Numbers<variant>::of,
    {{}, {{"momentum_buffer"}}},
    Numbers<scalars>::of,
    {"lr", "momentum", "weight_decay", "nesterov", "trust_coefficient", "eps", "adapts", "rate"},
    Numbers<measured>::of,
};

template <bool kMomentum>
struct Lars {
  using Scalars = lars::Scalars;
  static constexpr int kStates = kMomentum;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V momentum, weight_decay, rate;
    bool decays, nesterov;

    explicit Update(const Scalars& s)
        : momentum(splat<V>(s.momentum)),
          weight_decay(splat<V>(s.weight_decay)),
          rate(splat<V>(s.rate)),
          decays(s.weight_decay != 0),
          nesterov(s.nesterov != 0) {}

    V measured(V, V g) const { return g; }

    void operator()(V& p, V g, V* state) const {
      if (decays) g = fma(weight_decay, p, g);
      if constexpr (kMomentum) {
        V& buffer = state[0];
        buffer = fma(rate, g, momentum * buffer);
        p -= nesterov ? fma(rate, g, momentum * buffer) : buffer;
      } else {
        p = fma(-rate, g, p);
      }
    }
  };
};

using All = List<Lars<false>, Lars<true>>;

}  // namespace lars
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
