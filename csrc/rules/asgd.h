// ASGD: scalars, names, then the update.
//
// B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging" (1992);
// its step sizes: L. Bottou, "Stochastic gradient descent tricks" (2012). The roundings are those
// of torch's for-loop.
#pragma once

#include <math.h>

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace asgd {

struct Hyper {
  double lr, lambd, alpha, t0, weight_decay;
};

struct Scalars {
  double decay, eta, mu, weight_decay;
};

// A step uses the numbers that the one before has left.
inline Scalars scalars(const Hyper& h, double step, bool, Carried& eta, Carried& mu) {
  const Scalars now = {1 - h.lambd * eta.value, eta.value, mu.value, h.weight_decay};
  const double since = step - h.t0;
  eta.value = eta.rounded(h.lr / ::pow(1 + h.lambd * h.lr * step, h.alpha));
  mu.value = mu.rounded(1 / (since > 1 ? since : 1));
  return now;
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "asgd",
    {"lr", "lambd", "alpha", "t0", "weight_decay"},
    {"step", {"eta", "lr"}, {"mu", 1}},
    false,
    1,
    Numbers<variant>::of,
    {{{"ax", Rule::kExact}}},  // weights: they are what the training is for
    Numbers<scalars>::of,
    {"decay", "eta", "mu", "weight_decay"},
};

struct Asgd {
  using Scalars = asgd::Scalars;
  static constexpr int kStates = 1;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, minus_eta, mu, weight_decay;
    bool decays, averages;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          minus_eta(splat<V>(-s.eta)),
          mu(splat<V>(s.mu)),
          weight_decay(splat<V>(s.weight_decay)),
          decays(s.weight_decay != 0),
          averages(s.mu != 1) {}

    void operator()(V& p, V g, V* state) const {
      V& ax = state[0];
      if (decays) g = fma(weight_decay, p, g);
      p = fma(minus_eta, g, p * decay);
      ax = averages ? ax + (p - ax) * mu : p;
    }
  };
};

using All = List<Asgd>;

}  // namespace asgd
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
