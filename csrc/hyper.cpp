// The registry by name, keys and look-ups, then the numbers of a group.
#include "hyper.h"

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {
namespace {

double number(PyObject* value) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  // A tensor is asked by item(): float(tensor) warns where it requires a gradient. Numbers come
  // before it, since a failing look-up of an attribute costs more than all the rest of a group.
  double x;
  if (PyLong_Check(value)) {
    x = PyLong_AsDouble(value);
  } else if (py::hasattr(value, "item")) {
    return py::handle(value).attr("item")().cast<double>();
  } else {
    x = PyFloat_AsDouble(value);
  }
  if (x == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return x;
}

}  // namespace

int find_rule(const std::string& name) {
  std::string known;
  for (int i = 0; i < kRules; ++i) {
    if (name == kernels().rules[i].name) return i;
    known += std::string(i ? ", " : "") + kernels().rules[i].name;
  }
  throw std::invalid_argument("no rule '" + name + "'; there are: " + known);
}

PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

const Keys& keys_of(int rule) {
  static Keys keys[kRules];
  Keys& k = keys[rule];
  if (k.hyper.empty()) {
    const Rule& r = kernels().rules[rule];
    for (int i = 0; r.hyper[i]; ++i) k.hyper.push_back(interned(r.hyper[i]));
    k.states.resize(r.variants);
    for (int v = 0; v < r.variants; ++v) {
      for (int i = 0; r.states[v][i]; ++i) k.states[v].push_back(interned(r.states[v][i]));
    }
  }
  return k;
}

PyObject* get(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (!value) {
    if (PyErr_Occurred()) throw py::error_already_set();
    PyErr_SetObject(PyExc_KeyError, key);
    throw py::error_already_set();
  }
  return value;
}

Hyper read_hyper(int rule, PyObject* group) {
  Hyper hyper;
  int n = 0;
  for (PyObject* key : keys_of(rule).hyper) {
    PyObject* value = get(group, key);
    if (PyTuple_Check(value) || PyList_Check(value)) {
      for (py::handle part : py::reinterpret_borrow<py::sequence>(value)) {
        if (n < kMaxHyper) hyper.values[n++] = number(part.ptr());
      }
    } else if (n < kMaxHyper) {
      hyper.values[n++] = number(value);
    }
  }
  hyper.variant = kernels().rules[rule].variant(hyper.values);
  return hyper;
}

bool is_true(PyObject* value) {
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) throw py::error_already_set();
  return truth;
}

}  // namespace fastopt
