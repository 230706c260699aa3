// Reading param groups: a rule's keys as Python strings, look-ups, the numbers of a group.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "kernels.h"

namespace fastopt {

// The index of a rule in the registry; throws std::invalid_argument naming the known ones.
int find_rule(const std::string& name);

// The keys of a rule's hyperparameters and states as Python strings, made once and kept: looking a
// key up by an interned string compares pointers.
struct Keys {
  std::vector<PyObject*> hyper;
  std::vector<std::vector<PyObject*>> states;
};

const Keys& keys_of(int rule);

// A Python string that look-ups compare by pointer; never freed.
PyObject* interned(const char* text);

// dict[key], borrowed; throws KeyError.
PyObject* get(PyObject* dict, PyObject* key);

bool is_true(PyObject* value);

struct Hyper {
  double values[kMaxHyper] = {};
  int variant;
};

// The hyperparameters of a param group in the rule's order, tensors read as numbers.
Hyper read_hyper(int rule, PyObject* group);

}  // namespace fastopt
