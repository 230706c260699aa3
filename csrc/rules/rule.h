// What the host knows of a rule: its hyperparameters, its states, its scalars.
//
// A rule header holds four things: a struct of `Hyper`parameters, doubles in the order of its keys;
// a struct of `Scalars`, doubles computed from them once per group and step count; the table of its
// Python names (`Rule`); and per state layout (`variant`) the update of one vector, `Update<V>`,
// which the driver calls for every element type and tail. isa.cpp alone includes these headers,
// once per instruction set, and checks that structs and names agree: see simd/vec.h.
#pragma once

namespace fastopt {

constexpr int kMaxStates = 3;
constexpr int kMaxVariants = 4;
constexpr int kMaxHyper = 10;
constexpr int kMaxScalars = 12;

struct Rule {
  struct Key {  // of a param group
    const char* name;
    int numbers;  // that it holds: 2 for a tuple such as betas
    constexpr Key(const char* key = nullptr, int count = 1) : name(key), numbers(count) {}
  };
  const char* name;
  Key hyper[kMaxHyper + 1];
  bool counts_steps;  // state["step"] exists
  int variants;
  int (*variant)(const double* hyper);  // the state layout that these hyperparameters ask for
  const char* states[kMaxVariants][kMaxStates + 1];
  // `step` counts from 1; `first` marks a state that has never been written.
  void (*scalars)(const double* hyper, double step, bool first, double* out);
  const char* scalar_names[kMaxScalars + 1];
};

// How many names a list of them holds.
constexpr int length(const char* const* names) {
  int count = 0;
  while (names[count]) ++count;
  return count;
}

// How many numbers a rule's keys hold together.
constexpr int hyper_numbers(const Rule& rule) {
  int count = 0;
  for (const Rule::Key* key = rule.hyper; key->name; ++key) count += key->numbers;
  return count;
}

// A rule's hyperparameters by name.
template <class Hyper>
Hyper named(const double* numbers) {
  Hyper hyper;
  __builtin_memcpy(&hyper, numbers, sizeof hyper);
  return hyper;
}

}  // namespace fastopt
