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

// Every number of a group, in the rule's order, given to `read`.
template <class Read>
Hyper read_with(int rule, PyObject* group, const Read& read) {
  Hyper hyper;
  const auto add = [&](PyObject* key, PyObject* value) {
    if (hyper.count < kMaxHyper) {
      read(hyper, key, value);
      ++hyper.count;
    }
  };
  for (PyObject* key : keys_of(rule).hyper) {
    PyObject* value = get(group, key);
    if (PyTuple_Check(value) || PyList_Check(value)) {
      for (py::handle part : py::reinterpret_borrow<py::sequence>(value)) add(key, part.ptr());
    } else {
      add(key, value);
    }
  }
  hyper.variant = kernels().rules[rule].variant(hyper.values);
  return hyper;
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
  return read_with(rule, group, [](Hyper& hyper, PyObject*, PyObject* value) {
    hyper.values[hyper.count] = number(value);
  });
}

Hyper read_hyper_without_waiting(int rule, PyObject* group, const Device* device) {
  return read_with(rule, group, [&](Hyper& hyper, PyObject* key, PyObject* value) {
    if (PyFloat_CheckExact(value) || !is_on_device(value)) {
      hyper.values[hyper.count] = number(value);
      return;
    }
    View view;
    read_anywhere(value, &view);
    const std::string name = "its group's " + py::str(key).cast<std::string>() + " ";
    if (view.numel != 1 || view.complex || kElementBytes[int(view.dtype)] < 4) {
      throw Refused(name + "has shape " + describe_shape(view) + " and dtype " + dtype_name(view) +
                    "; on a device it must be one float32 or float64 number");
    }
    if (device && !(view.device == *device)) {
      throw Refused(name +
                    "is a tensor on another device than the parameter; move it there, or "
                    "give the parameters of each device a group of their own");
    }
    hyper.values[hyper.count] = 0.5;
    hyper.at[hyper.count] = reinterpret_cast<int64_t>(view.data) | (view.dtype == Dtype::float64);
  });
}

bool is_true(PyObject* value) {
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) throw py::error_already_set();
  return truth;
}

Passes read_passes(PyObject* group, std::optional<double> grad_scale) {
  static PyObject* maximize = interned("maximize");
  static PyObject* max_grad_norm = interned("max_grad_norm");
  static PyObject* max_grad_value = interned("max_grad_value");
  static PyObject* skip_nonfinite = interned("skip_nonfinite");
  static PyObject* l1 = interned("l1");
  static PyObject* ema_decay = interned("ema_decay");
  static PyObject* clear_grads = interned("clear_grads");
  static PyObject* track_stats = interned("track_stats");
  // Sets *to and returns true unless the value is None.
  const auto given = [&](PyObject* key, double* to) {
    PyObject* value = get(group, key);
    if (value == Py_None) return false;
    *to = number(value);
    return true;
  };
  Passes passes;
  passes.unscale = grad_scale.has_value();
  passes.grad_scale = grad_scale.value_or(1);
  passes.clip_norm = given(max_grad_norm, &passes.max_grad_norm);
  given(max_grad_value, &passes.max_grad_value);
  passes.maximize = is_true(get(group, maximize));
  passes.l1 = number(get(group, l1));
  passes.average = given(ema_decay, &passes.ema_decay);
  passes.clear_grads = is_true(get(group, clear_grads));
  passes.track_stats = is_true(get(group, track_stats));
  passes.skip_nonfinite = is_true(get(group, skip_nonfinite));
  return passes;
}

}  // namespace fastopt
