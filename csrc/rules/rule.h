// What the host knows of a rule: its hyperparameters, its states, its scalars.
//
// A rule is a header here, <name>.h, which list_rules.py finds, with a namespace <name> that holds:
// a struct of `Hyper`parameters, doubles in the order of its keys; a struct of `Scalars`, doubles
// computed from them and from what the parameter carries, once per group and step count, by a
// function of that name; the table of its Python names, `kRule`; and `All`, per state layout
// (`variant`) the update of one vector, `Update<V>`, which the loop calls for every element type
// and tail. Where the update of a tensor depends on norms, the loop first goes over it with the
// update's `measured(p, g, state)`, then the rule's `measured` completes the scalars. isa.cpp and
// isa_compact.cpp alone include these headers, once per instruction set, and the first checks that
// structs, functions and names agree: see simd/vec.h.
#pragma once

#include <utility>

namespace fastopt {

constexpr int kMaxStates = 4;
constexpr int kMaxVariants = 4;
constexpr int kMaxHyper = 10;
constexpr int kMaxScalars = 12;
constexpr int kMaxCarried = 3;

// A number that a parameter carries from step to step, kept in a 0-d tensor of this width.
struct Carried {
  double value;
  bool wide;  // float64, else float32
  // As the tensor holds it. One operation on float32 numbers has the same bits in double, then
  // rounded, as in float32.
  double rounded(double x) const { return wide ? x : double(float(x)); }
  // In its own type, as torch does: float32 stops at 2**24.
  void add(double x) { value = rounded(value + rounded(x)); }
  void multiply(double x) { value = rounded(value * rounded(x)); }
  bool operator==(const Carried& other) const { return value == other.value && wide == other.wide; }
};

struct Rule {
  struct Key {  // of a param group
    const char* name;
    int numbers;    // that it holds: 2 for a tuple such as betas
    bool optional;  // a group that does not have it, as torch's lack some, or has None, means 0
    constexpr Key(const char* key = nullptr, int count = 1, bool may_lack = false)
        : name(key), numbers(count), optional(may_lack) {}
  };
  static constexpr Key optional(const char* key) { return {key, 1, true}; }
  // What numbers a state holds, by which it is coded in a byte: positive ones need no sign, and of
  // a running maximum, which never decays, noise would only keep the largest. Exact ones are not
  // coded: where the mean is large, nothing is left of a variance that is the difference of two.
  enum Kind { kSigned, kPositive, kMaximum, kExact };
  struct State {
    const char* name;
    // What it is before its first step: zeros, the parameter itself (kOfParam), the hyperparameter
    // of this name, or nothing yet (kUnwritten), for the first update writes it without reading it
    // (its scalars are told `first`).
    const char* start;
    Kind kind;
    constexpr State(const char* key = nullptr, const char* begins = "zeros", Kind of = kSigned)
        : name(key), start(begins), kind(of) {}
    constexpr State(const char* key, Kind of) : State(key, "zeros", of) {}
  };
  struct Carry {  // a number of the parameter's, in its state
    const char* name;
    double start;      // what it is before the first step
    const char* from;  // or the hyperparameter that it then is
    constexpr Carry(const char* key = nullptr, double begins = 0)
        : name(key), start(begins), from(nullptr) {}
    constexpr Carry(const char* key, const char* begins) : name(key), start(0), from(begins) {}
  };
  const char* name;
  Key hyper[kMaxHyper + 1];
  Carry carries[kMaxCarried + 1];  // "step", which counts from 0, then any others; or nothing
  bool sparse;                     // torch's own step takes sparse gradients
  int variants;
  int (*variant)(const double* hyper);  // the state layout that these hyperparameters ask for
  State states[kMaxVariants][kMaxStates + 1];
  // Advances what is carried by one step; `first` marks a state that has never been written.
  void (*scalars)(const double* hyper, Carried* carried, bool first, double* out);
  const char* scalar_names[kMaxScalars + 1];
  // Completes a tensor's scalars by its norm and that of what its update measures; or there is
  // nothing to measure.
  void (*measured)(double weight_norm, double norm, double* scalars) = nullptr;
};

// Starts of a state.
constexpr const char* kUnwritten = nullptr;
constexpr const char* kOfParam = "param";

// How many names a list of them holds.
constexpr int length(const char* const* names) {
  int count = 0;
  while (names[count]) ++count;
  return count;
}
template <class Named>
constexpr int length(const Named* list) {
  int count = 0;
  while (list[count].name) ++count;
  return count;
}

// How many numbers a rule's keys hold together.
constexpr int hyper_numbers(const Rule& rule) {
  int count = 0;
  for (const Rule::Key* key = rule.hyper; key->name; ++key) count += key->numbers;
  return count;
}

// A rule's functions of its hyperparameters by name, as functions of numbers in its order. Scalars
// are computed of the step to come, which counts from 1, and of references to the other numbers
// that are carried, which the function advances.
template <auto kOf>
struct Numbers;
template <class Scalars, class Hyper, class... More,
          Scalars (*kOf)(const Hyper&, double, bool, More&...)>
struct Numbers<kOf> {
  static constexpr int kMore = sizeof...(More);
  static void of(const double* numbers, Carried* carried, bool first, double* out) {
    Hyper hyper;
    __builtin_memcpy(&hyper, numbers, sizeof hyper);
    carried->add(1);
    const Scalars scalars = with(hyper, carried, first, std::make_integer_sequence<int, kMore>{});
    __builtin_memcpy(out, &scalars, sizeof scalars);
  }
  template <int... k>
  static Scalars with(const Hyper& hyper, Carried* carried, bool first,
                      std::integer_sequence<int, k...>) {
    return kOf(hyper, carried->value, first, carried[1 + k]...);
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

template <class Scalars, void (*kOf)(double, double, Scalars&)>
struct Numbers<kOf> {
  static void of(double weight_norm, double norm, double* numbers) {
    Scalars scalars;
    __builtin_memcpy(&scalars, numbers, sizeof scalars);
    kOf(weight_norm, norm, scalars);
    __builtin_memcpy(numbers, &scalars, sizeof scalars);
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
