// RMSprop: scalars, names, then the update, plain or centered, with and without momentum.
//
// G. Hinton, lecture 6e of "Neural networks for machine learning" (2012); centered: A. Graves,
// "Generating sequences with recurrent neural networks" (2013). The roundings are those of torch's
// for-loop but for its square root: MKL's is one unit off in some numbers, other ones on each
// processor (docs/numerics.md).
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace rmsprop {

struct Hyper {
  double lr, alpha, eps, weight_decay, momentum, centered, decoupled_weight_decay, eps_in_sqrt;
};

struct Scalars {
  double decay, lr, alpha, square_weight, eps, eps_in_sqrt, weight_decay, momentum;
};

inline Scalars scalars(const Hyper& h, double, bool) {
  const Decay decay(h.lr, h.weight_decay, h.decoupled_weight_decay);
  const bool inside = h.eps_in_sqrt;
  return {
      decay.factor,       h.lr,         h.alpha,    1 - h.alpha, inside ? 0 : h.eps,
      inside ? h.eps : 0, decay.weight, h.momentum,
  };
}

inline int variant(const Hyper& h) { return (h.momentum > 0) + 2 * (h.centered != 0); }

constexpr Rule kRule = {
    "rmsprop",
    {"lr", "alpha", "eps", "weight_decay", "momentum", "centered",
     Rule::optional("decoupled_weight_decay"), Rule::optional("eps_in_sqrt")},
    {"step"},
    false,
    4,
    Numbers<variant>::of,
    {{{"square_avg", Rule::kPositive}},
     {{"square_avg", Rule::kPositive}, "momentum_buffer"},
     {{"square_avg", Rule::kExact}, {"grad_avg", Rule::kExact}},
     {{"square_avg", Rule::kExact}, "momentum_buffer", {"grad_avg", Rule::kExact}}},
    Numbers<scalars>::of,
    {"decay", "lr", "alpha", "square_weight", "eps", "eps_in_sqrt", "weight_decay", "momentum"},
};

template <bool kMomentum, bool kCentered>
struct Rmsprop {
  using Scalars = rmsprop::Scalars;
  static constexpr int kStates = 1 + kMomentum + kCentered;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V decay, lr, alpha, square_weight, eps, eps_in_sqrt, weight_decay, momentum;
    Lerp<V> lerp;
    bool shrinks, decays, roots_eps;

    explicit Update(const Scalars& s)
        : decay(splat<V>(s.decay)),
          lr(splat<V>(s.lr)),
          alpha(splat<V>(s.alpha)),
          square_weight(splat<V>(s.square_weight)),
          eps(splat<V>(s.eps)),
          eps_in_sqrt(splat<V>(s.eps_in_sqrt)),
          weight_decay(splat<V>(s.weight_decay)),
          momentum(splat<V>(s.momentum)),
          lerp(s.square_weight),
          shrinks(s.decay != 1),
          decays(s.weight_decay != 0),
          roots_eps(s.eps_in_sqrt != 0) {}

    void operator()(V& p, V g, V* state) const {
      V& square_avg = state[0];
      if (shrinks) p *= decay;
      if (decays) g = fma(weight_decay, p, g);
      square_avg = fma(square_weight * g, g, alpha * square_avg);
      V variance = square_avg;
      if constexpr (kCentered) {
        V& grad_avg = state[kStates - 1];
        grad_avg = lerp(grad_avg, g);
        variance = fma(-grad_avg, grad_avg, square_avg);
      }
      if (roots_eps) variance += eps_in_sqrt;
      const V denom = sqrt(variance) + eps;
      if constexpr (kMomentum) {
        V& buffer = state[1];
        buffer = momentum * buffer + g / denom;
        p = fma(-lr, buffer, p);
      } else {
        p -= lr * g / denom;
      }
    }
  };
};

using All =
    List<Rmsprop<false, false>, Rmsprop<true, false>, Rmsprop<false, true>, Rmsprop<true, true>>;

}  // namespace rmsprop
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
