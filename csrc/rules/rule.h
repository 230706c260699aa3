// What the host knows of a rule: its hyperparameters, its states, its scalars.
//
// A rule header holds three things: a struct of `Scalars`, doubles computed once per group and step
// count; the table of its Python names (`Rule`); and per state layout (`variant`) the update of one
// vector, `Update<V>`, which the driver calls for every element type and tail. isa.cpp alone
// includes these headers, once per instruction set: see simd/vec.h.
#pragma once

namespace fastopt {

constexpr int kMaxStates = 3;
constexpr int kMaxVariants = 4;
constexpr int kMaxHyper = 10;
constexpr int kMaxScalars = 12;

struct Rule {
  const char* name;
  const char* hyper[kMaxHyper + 1];  // keys of a param group; a tuple (betas) gives its numbers
  bool counts_steps;                 // state["step"] exists
  int variants;
  int (*variant)(const double* hyper);  // the state layout that these hyperparameters ask for
  const char* states[kMaxVariants][kMaxStates + 1];
  // `step` counts from 1; `first` marks a state that has never been written.
  void (*scalars)(const double* hyper, double step, bool first, double* out);
  const char* scalar_names[kMaxScalars + 1];
};

}  // namespace fastopt
