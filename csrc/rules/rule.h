// What the host knows of a rule: its hyperparameters, its states, its scalars.
//
// A rule is a header here, <name>.h, which list_rules.py finds, with a namespace <name> that holds:
// a struct of `Hyper`parameters, doubles in the order of its keys; a struct of `Scalars`, doubles
// computed from them once per group and step count; the table of its Python names, `kRule`; and
// `All`, per state layout (`variant`) the update of one vector, `Update<V>`, which the loop calls
// for every element type and tail. isa.cpp and isa_compact.cpp alone include these headers, once
// per instruction set, and the first checks that structs and names agree: see simd/vec.h.
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
  // What numbers a state holds, by which it is coded in a byte: positive ones need no sign, and of
  // a running maximum, which never decays, noise would only keep the largest.
  enum Kind { kSigned, kPositive, kMaximum };
  struct State {
    const char* name;
    // What it is before its first step: zeros, the hyperparameter of this name, or nothing yet, for
    // the first update writes it without reading it (its scalars are told `first`).
    const char* start;
    Kind kind;
    constexpr State(const char* key = nullptr, const char* begins = "zeros", Kind of = kSigned)
        : name(key), start(begins), kind(of) {}
    constexpr State(const char* key, Kind of) : State(key, "zeros", of) {}
  };
  const char* name;
  Key hyper[kMaxHyper + 1];
  bool counts_steps;  // state["step"] exists
  bool sparse;        // torch's own step takes sparse gradients
  int variants;
  int (*variant)(const double* hyper);  // the state layout that these hyperparameters ask for
  State states[kMaxVariants][kMaxStates + 1];
  // `step` counts from 1; `first` marks a state that has never been written.
  void (*scalars)(const double* hyper, double step, bool first, double* out);
  const char* scalar_names[kMaxScalars + 1];
};

constexpr const char* kUnwritten = nullptr;  // the start of a state

// How many names a list of them holds.
constexpr int length(const char* const* names) {
  int count = 0;
  while (names[count]) ++count;
  return count;
}
constexpr int length(const Rule::State* states) {
  int count = 0;
  while (states[count].name) ++count;
  return count;
}

// How many numbers a rule's keys hold together.
constexpr int hyper_numbers(const Rule& rule) {
  int count = 0;
  for (const Rule::Key* key = rule.hyper; key->name; ++key) count += key->numbers;
  return count;
}

// A rule's functions of its hyperparameters by name, as functions of numbers in its order.
template <auto kOf>
struct Numbers;
template <class Scalars, class Hyper, Scalars (*kOf)(const Hyper&, double, bool)>
struct Numbers<kOf> {
  static void of(const double* numbers, double step, bool first, double* out) {
    Hyper hyper;
    __builtin_memcpy(&hyper, numbers, sizeof hyper);
    const Scalars scalars = kOf(hyper, step, first);
    __builtin_memcpy(out, &scalars, sizeof scalars);
  }
};
template <class Hyper, int (*kOf)(const Hyper&)>
struct Numbers<kOf> {
  static int of(const double* numbers) {
    Hyper hyper;
    __builtin_memcpy(&hyper, numbers, sizeof hyper);
    return kOf(hyper);
  }
};

// Weight decay: what the parameter is multiplied by where it is decoupled, then what is left of it
// for the gradient.
struct Decay {
  double factor, weight;
  Decay(double lr, double weight_decay, bool decoupled)
      : factor(decoupled ? 1 - lr * weight_decay : 1), weight(decoupled ? 0 : weight_decay) {}
};

template <class... Variants>
struct List {};

}  // namespace fastopt
