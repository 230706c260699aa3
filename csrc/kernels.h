// The table of compiled kernels that each instruction set fills, and what a kernel is called with.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "rules/rule.h"

namespace fastopt {

constexpr int kRules = 3;
constexpr int kMaxStreams = 2 + kMaxStates;  // param, grad, states

// The passes over a gradient before the rule sees it, the same for every rule.
struct Prologue {
  bool maximize = false;
  bool unscale = false;  // GradScaler's protocol: divide by grad_scale and write the gradient back
  double grad_scale = 1;
};

// Elements to update: streams[0] is the parameter, [1] the gradient, the rest the states in the
// rule's order, each contiguous and with any alignment.
struct Run {
  char* streams[kMaxStreams];
  int64_t count;
};

// Many runs a call: setting up the scalars costs as much as updating a small tensor.
using Kernel = void (*)(const Run* runs, int64_t run_count, const double* scalars,
                        const Prologue& prologue);

struct Kernels {
  const char* isa;
  Rule rules[kRules];
  Kernel update[kRules][kMaxVariants][kDtypes];
  // The floor a step is measured against: read every stream, write the first `writes` back.
  void (*stream)(float* const* streams, int reads, int writes, int64_t begin, int64_t end);
  // 16-bit conversions by themselves, for tests: to float32 and back to the given type.
  void (*widen)(Dtype from, const uint16_t* in, float* out, int64_t count);
  void (*narrow)(Dtype to, const float* in, uint16_t* out, int64_t count);
};

}  // namespace fastopt
