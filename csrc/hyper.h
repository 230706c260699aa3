// Reading param groups: a rule's keys as Python strings, look-ups, the numbers of a group.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace fastopt {

// The index of a rule in the registry; throws std::invalid_argument naming the known ones.
int find_rule(const std::string& name);

// The keys of a rule's hyperparameters and states as Python strings, made once and
// kept: looking a key up by an interned string compares pointers.
struct Keys {
  std::vector<PyObject*> hyper;
  std::vector<std::vector<PyObject*>> states;
  std::vector<std::vector<PyObject*>> codes, scales;  // of these, where they are in codes
};

const Keys& keys_of(int rule);

// The numbers that a parameter of this rule carries; noise is keyed by a count, whatever the rule.
const Rule::Carry* carries_of(int rule, bool compact);

// A Python string that look-ups compare by pointer; never freed.
PyObject* interned(const char* text);

// dict[key], borrowed; null where it is missing.
PyObject* find(PyObject* dict, PyObject* key);

// Likewise; throws KeyError.
PyObject* get(PyObject* dict, PyObject* key);

// The parameters of a group: a list or a tuple, else throws Refused.
pybind11::object params_of(PyObject* group);

bool is_true(PyObject* value);

// Whether dict[key] is there and true.
bool is_set(PyObject* dict, PyObject* key);

struct Hyper {
  double values[kMaxHyper] = {};
  // Of each number that is a tensor on a device and was not read: its address, the lowest bit set
  // where it is float64. Its value is then 0.5, which asks for the same states as any but 0.
  int64_t at[kMaxHyper] = {};
  Device device;                  // where these are, all of them
  PyObject* on_device = nullptr;  // the key of one of them
  int count = 0;
  int variant;
};

// The hyperparameters of a param group in the rule's order, tensors read as numbers; those on a
// device only where `waits`.
Hyper read_hyper(int rule, PyObject* group, bool waits);

// What a param group asks for around the update; `grad_scale` is GradScaler's.
Passes read_passes(PyObject* group, std::optional<double> grad_scale);

// What a param group asks for in one step.
struct Group {
  int rule;
  Hyper hyper;
  Passes passes;
  int streams;  // of each parameter: itself, its gradient, its states, its moving average
  int tensors;  // and the numbers it carries
  const Rule::Carry* carries;  // these
  pybind11::object params;
  bool flagged;  // it asks for torch's own step
  // It asks for compact formats, whose noise is keyed by this seed. Of streams of 16 bits alone
  // their dtype does not tell that they are rounded by it: states are, parameters where it says so.
  bool compact = false;
  int formats = 0;  // which of them
  uint64_t rounding_seed = 0;
  bool noisy_params = false;
};

// What a group asks for of formats; one that nobody has asked need not have these keys.
void read_formats(PyObject* group, Group* now);

// May run Python. Throws Refused where a number or the parameters are not what they must be.
Group read_group(int rule, PyObject* group, std::optional<double> grad_scale, bool waits);

}  // namespace fastopt
