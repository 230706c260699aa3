// The registry by name, keys and look-ups, then the numbers of a group.
#include "hyper.h"

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {
namespace {

double number(PyObject* value) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  const auto held = py::reinterpret_borrow<py::object>(value);  // what follows may run Python
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

[[noreturn]] void refuse_count(PyObject* key, PyObject* borrowed, int numbers) {
  const auto value = py::reinterpret_borrow<py::object>(borrowed);
  constexpr size_t kLongest = 80;
  std::string text = py::repr(value);
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  throw Refused("the group's '" + py::str(key).cast<std::string>() + "' is " + text +
                "; it must be " +
                (numbers == 1 ? "one number" : std::to_string(numbers) + " numbers"));
}

// Every number of a group, in the rule's order, given to `read`. Reading one may run Python: what
// is used after it is held.
template <class Read>
Hyper read_with(int rule, PyObject* borrowed, const Read& read) {
  const auto group = py::reinterpret_borrow<py::object>(borrowed);
  Hyper hyper;
  const auto add = [&](PyObject* key, PyObject* value) {
    read(hyper, key, value);
    ++hyper.count;
  };
  const Rule::Key* of = kernels().rules[rule].hyper;
  for (PyObject* key : keys_of(rule).hyper) {
    const auto [_, numbers, optional] = *of++;
    PyObject* const value = optional ? find(group.ptr(), key) : get(group.ptr(), key);
    if (!value || (optional && value == Py_None)) {
      hyper.values[hyper.count++] = 0;
      continue;
    }
    const bool several = PyTuple_Check(value) || PyList_Check(value);
    if (several != (numbers > 1)) refuse_count(key, value, numbers);
    if (!several) {
      add(key, value);
      continue;
    }
    const auto parts = py::reinterpret_steal<py::tuple>(PySequence_Tuple(value));
    if (!parts) throw py::error_already_set();
    if (int(parts.size()) != numbers) refuse_count(key, parts.ptr(), numbers);
    for (const py::handle part : parts) add(key, part.ptr());
  }
  hyper.variant = kernels().rules[rule].variant(hyper.values);
  return hyper;
}

}  // namespace

int find_rule(const std::string& name) {
  std::string known;
  for (int i = 0; i < kernels().rule_count; ++i) {
    if (name == kernels().rules[i].name) return i;
    known += std::string(i ? ", " : "") + kernels().rules[i].name;
  }
  throw std::invalid_argument("no rule '" + name + "'; there are: " + known);
}

PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

const Keys& keys_of(int rule) {
  static Keys keys[kMaxRules];
  Keys& k = keys[rule];
  if (k.hyper.empty()) {
    const Rule& r = kernels().rules[rule];
    for (int i = 0; r.hyper[i].name; ++i) k.hyper.push_back(interned(r.hyper[i].name));
    k.states.resize(r.variants);
    k.codes.resize(r.variants);
    k.scales.resize(r.variants);
    for (int v = 0; v < r.variants; ++v) {
      for (int i = 0; r.states[v][i].name; ++i) {
        k.states[v].push_back(interned(r.states[v][i].name));
        const std::string name = r.states[v][i].name;
        k.codes[v].push_back(interned((name + kCodesSuffix).c_str()));
        k.scales[v].push_back(interned((name + kScaleSuffix).c_str()));
      }
    }
  }
  return k;
}

const Rule::Carry* carries_of(int rule, bool compact) {
  static constexpr Rule::Carry kCount[] = {{"step"}, {}};
  const Rule::Carry* const own = kernels().rules[rule].carries;
  return compact && !own->name ? kCount : own;
}

PyObject* find(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

PyObject* get(PyObject* dict, PyObject* key) {
  PyObject* value = find(dict, key);
  if (!value) {
    PyErr_SetObject(PyExc_KeyError, key);
    throw py::error_already_set();
  }
  return value;
}

py::object params_of(PyObject* group) {
  static PyObject* params_key = interned("params");
  auto params = py::reinterpret_borrow<py::object>(get(group, params_key));
  if (!PyList_Check(params.ptr()) && !PyTuple_Check(params.ptr())) {
    throw Refused(std::string("the group's 'params' is a ") + Py_TYPE(params.ptr())->tp_name +
                  "; it must be a list or a tuple");
  }
  return params;
}

Hyper read_hyper(int rule, PyObject* group, bool waits) {
  return read_with(rule, group, [&](Hyper& hyper, PyObject* key, PyObject* value) {
    if (waits || PyFloat_CheckExact(value) || !is_on_device(value)) {
      hyper.values[hyper.count] = number(value);
      return;
    }
    View view;
    read_anywhere(value, &view);
    const std::string name = "its group's " + py::str(key).cast<std::string>() + " ";
    if (!one_number(view)) throw Refused(name + not_one_number(view));
    if (hyper.on_device && !(view.device == hyper.device)) {
      throw Refused(name + "is on " + describe(view.device) + ", another number of the group on " +
                    describe(hyper.device) + "; move one of them there");
    }
    hyper.device = view.device;
    hyper.on_device = key;
    hyper.values[hyper.count] = 0.5;
    hyper.at[hyper.count] = reinterpret_cast<int64_t>(view.data) | (view.dtype == Dtype::float64);
  });
}

bool is_true(PyObject* value) {
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) throw py::error_already_set();
  return truth;
}

bool is_set(PyObject* dict, PyObject* key) {
  PyObject* value = find(dict, key);
  return value && is_true(value);
}

Passes read_passes(PyObject* borrowed, std::optional<double> grad_scale) {
  const auto held = py::reinterpret_borrow<py::object>(borrowed);  // reading may run Python
  PyObject* const group = held.ptr();
  static PyObject* maximize = interned("maximize");
  static PyObject* max_grad_norm = interned("max_grad_norm");
  static PyObject* max_grad_value = interned("max_grad_value");
  static PyObject* skip_nonfinite = interned("skip_nonfinite");
  static PyObject* l1 = interned("l1");
  static PyObject* ema_decay = interned("ema_decay");
  static PyObject* clear_grads = interned("clear_grads");
  static PyObject* track_stats = interned("track_stats");
  // Sets *to and returns true where there is a value and it is not None.
  const auto given = [&](PyObject* key, double* to) {
    PyObject* const value = find(group, key);
    if (!value || value == Py_None) return false;
    *to = number(value);
    return true;
  };
  Passes passes;
  passes.unscale = grad_scale.has_value();
  passes.grad_scale = grad_scale.value_or(1);
  passes.clip_norm = given(max_grad_norm, &passes.max_grad_norm);
  given(max_grad_value, &passes.max_grad_value);
  passes.maximize = is_true(get(group, maximize));
  given(l1, &passes.l1);
  passes.average = given(ema_decay, &passes.ema_decay);
  passes.clear_grads = is_set(group, clear_grads);
  passes.track_stats = is_set(group, track_stats);
  passes.skip_nonfinite = is_set(group, skip_nonfinite);
  return passes;
}

void read_formats(PyObject* group, Group* now) {
  static PyObject* state_bits = interned("state_bits");
  static PyObject* master_weight_bits = interned("master_weight_bits");
  static PyObject* stochastic_rounding = interned("stochastic_rounding");
  static PyObject* rounding_seed = interned("rounding_seed");
  const auto bits = [&](PyObject* key) {
    PyObject* const value = find(group, key);
    return value && value != Py_None ? int(number(value)) : 0;
  };
  now->noisy_params = is_set(group, stochastic_rounding);
  const int states = bits(state_bits), masters = bits(master_weight_bits);
  now->compact = states || masters || now->noisy_params;
  now->formats = states << 8 | masters << 1 | int(now->noisy_params);
  if (!now->compact) return;
  PyObject* const seed = find(group, rounding_seed);
  now->rounding_seed = seed ? PyLong_AsUnsignedLongLongMask(seed) : 0;
  if (PyErr_Occurred()) throw py::error_already_set();
}

Group read_group(int rule, PyObject* borrowed, std::optional<double> grad_scale, bool waits) {
  static PyObject* differentiable = interned("differentiable");
  static PyObject* capturable = interned("capturable");
  const auto held = py::reinterpret_borrow<py::object>(borrowed);
  PyObject* const group = held.ptr();
  Group now;
  now.rule = rule;
  now.hyper = read_hyper(rule, group, waits);
  now.passes = read_passes(group, grad_scale);
  now.streams = 2 + length(kernels().rules[rule].states[now.hyper.variant]) + now.passes.average;
  now.flagged = is_set(group, differentiable) || is_set(group, capturable);
  read_formats(group, &now);
  now.carries = carries_of(rule, now.compact);
  now.tensors = now.streams + length(now.carries);
  now.params = params_of(group);
  return now;
}

}  // namespace fastopt
