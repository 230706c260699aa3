// Rprop: scalars, names, then the update.
//
// M. Riedmiller and H. Braun, "A direct adaptive method for faster backpropagation learning: the
// RPROP algorithm" (1993), in torch's form: a gradient that has changed its sign is taken for zero.
// The roundings are those of torch's for-loop.
#pragma once

#include "rule.h"

namespace fastopt::FASTOPT_ISA {
namespace {
namespace rprop {

struct Hyper {
  double lr, etaminus, etaplus, step_size_min, step_size_max;
};

struct Scalars {
  double etaminus, etaplus, step_size_min, step_size_max;
};

inline Scalars scalars(const Hyper& h, double, bool) {
  return {h.etaminus, h.etaplus, h.step_size_min, h.step_size_max};
}

inline int variant(const Hyper&) { return 0; }

constexpr Rule kRule = {
    "rprop",
    {"lr", {"etas", 2}, {"step_sizes", 2}},
    {"step"},
    false,
    1,
    Numbers<variant>::of,
    // Of `prev` the sign alone counts, which a code keeps but for what is tiny beside its block.
    // Step sizes are exact: neighbours lie up to a factor of step_size_max / step_size_min apart,
    // and a code has 2^19.
    {{"prev", {"step_size", "lr", Rule::kExact}}},
    Numbers<scalars>::of,
    {"etaminus", "etaplus", "step_size_min", "step_size_max"},
};

struct Rprop {
  using Scalars = rprop::Scalars;
  static constexpr int kStates = 2;
  static constexpr bool kPrefetch = true;

  template <class V>
  struct Update {
    V etaminus, etaplus, smallest, largest, one;

    explicit Update(const Scalars& s)
        : etaminus(splat<V>(s.etaminus)),
          etaplus(splat<V>(s.etaplus)),
          smallest(splat<V>(s.step_size_min)),
          largest(splat<V>(s.step_size_max)),
          one(splat<V>(1)) {}

    void operator()(V& p, V g, V* state) const {
      V& prev = state[0];
      V& step_size = state[1];
      const V turn = g * prev;
      const V factor = turn > 0 ? etaplus : turn < 0 ? etaminus : one;
      const V size = factor * step_size;
      const V raised = size < smallest ? smallest : size;  // as torch.clamp: NaN stays NaN
      step_size = raised > largest ? largest : raised;
      prev = factor == etaminus ? V{} : g;
      p -= (prev > 0 ? one : prev < 0 ? -one : V{}) * step_size;  // as torch.sign: 0 for NaN
    }
  };
};

using All = List<Rprop>;

}  // namespace rprop
}  // namespace
}  // namespace fastopt::FASTOPT_ISA
