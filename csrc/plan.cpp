// Reading a param group, the plan (building, checking, collecting), the functional form, the floor.
#include "plan.h"

#include <omp.h>

#include <algorithm>
#include <unordered_map>

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {
namespace {

// The keys of a rule's hyperparameters and states as Python strings, made once and kept: looking a
// key up by an interned string compares pointers.
struct Keys {
  std::vector<PyObject*> hyper;
  std::vector<std::vector<PyObject*>> states;
};

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

struct Hyper {
  double values[kMaxHyper] = {};
  int variant;
};

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

// Tell autograd of the coming write, as every in-place operation of torch does.
void increment_versions(const py::list& params) {
  static const py::handle increment =
      py::object(py::module_::import("torch.autograd.graph").attr("increment_version")).release();
  increment(params);
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

Plan::Plan(const std::string& rule, const py::list& groups, const py::dict& state,
           const std::string& engine, const std::string& first)
    : rule_(find_rule(rule)) {
  static PyObject* params_key = interned("params");
  static PyObject* step_key = interned("step");
  std::unordered_map<PyObject*, PyObject*> state_of;
  for (const auto& [param, dict] : state) {
    state_.emplace_back(param.ptr(), dict.ptr());
    state_of[param.ptr()] = dict.ptr();
  }
  size_t index = 0;
  for (const py::handle group : groups) {
    std::vector<Slot>& slots = groups_.emplace_back();
    const Hyper hyper = read_hyper(rule_, group.ptr());
    const auto& names = keys_of(rule_).states[hyper.variant];
    for (const py::handle param : py::reinterpret_borrow<py::list>(get(group.ptr(), params_key))) {
      Slot& slot = slots.emplace_back();
      slot.param = param.ptr();
      slot.engine = engine.at(index) != 0;
      slot.first = first.at(index) != 0;
      ++index;
      const auto found = state_of.find(slot.param);
      if (!slot.engine || found == state_of.end() || !PyDict_Check(found->second)) continue;
      slot.state = found->second;
      slot.first_item = items_.size();
      for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(slot.state)) {
        int role = kOther;
        const auto is = [&](PyObject* name) {
          return PyUnicode_Check(key.ptr()) && PyUnicode_Compare(key.ptr(), name) == 0;
        };
        if (is(step_key)) role = kStep;
        for (size_t i = 0; i < names.size(); ++i) {
          if (is(names[i])) role = int(i);
        }
        items_.push_back({key.ptr(), value.ptr(), role});
        if (role != kOther && value.ptr() != Py_None) handles_.emplace_back(value.ptr());
      }
      slot.items = items_.size() - slot.first_item;
    }
  }
}

void Plan::check_state(const py::dict& state) const {
  Py_ssize_t position = 0;
  PyObject *key, *value;
  size_t i = 0;
  for (; PyDict_Next(state.ptr(), &position, &key, &value); ++i) {
    if (i >= state_.size() || key != state_[i].first || value != state_[i].second) {
      throw Changed("optimizer.state has changed");
    }
  }
  if (i != state_.size()) throw Changed("optimizer.state has changed");
}

void Plan::collect_param(Slot& slot, PyObject* grad, int variant) {
  PyObject* states[kMaxStates] = {};
  PyObject* step = nullptr;
  if (slot.state) {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    const Item* item = items_.data() + slot.first_item;
    const Item* const end = item + slot.items;
    for (; PyDict_Next(slot.state, &position, &key, &value); ++item) {
      if (item == end || key != item->key || value != item->value) {
        throw Changed("its state has changed");
      }
      if (item->role == kStep) step = value;
      if (item->role >= 0) states[item->role] = value;
    }
    if (item != end) throw Changed("its state has changed");
  }
  const Rule& rule = kernels().rules[rule_];
  if (rule.counts_steps && !step) throw Changed("it has no state 'step'");
  const char* const* names = rule.states[variant];
  for (int k = 0; names[k]; ++k) {
    if (!states[k] || states[k] == Py_None) {
      throw Changed("it has no state '" + std::string(names[k]) + "'");
    }
  }
  batch_.add(slot.param, grad, states, rule.counts_steps ? step : nullptr, slot.first);
}

void Plan::collect(const py::list& groups, std::optional<double> grad_scale) {
  static PyObject* params_key = interned("params");
  static PyObject* maximize_key = interned("maximize");
  if (size_t(PyList_GET_SIZE(groups.ptr())) != groups_.size()) {
    throw Changed("the param groups have changed");
  }
  index_ = -1;
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* group = PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g));
    std::vector<Slot>& slots = groups_[g];
    PyObject* params = get(group, params_key);
    if (!PyList_Check(params) || size_t(PyList_GET_SIZE(params)) != slots.size()) {
      throw Changed("the parameters of a group have changed");
    }
    const Hyper hyper = read_hyper(rule_, group);
    Prologue prologue;
    prologue.maximize = is_true(get(group, maximize_key));
    prologue.unscale = grad_scale.has_value();
    prologue.grad_scale = grad_scale.value_or(1);
    batch_.set_group(rule_, hyper.variant, hyper.values, prologue);
    for (size_t i = 0; i < slots.size(); ++i) {
      ++index_;
      Slot& slot = slots[i];
      if (PyList_GET_ITEM(params, Py_ssize_t(i)) != slot.param) {
        throw Changed("the parameters of a group have changed");
      }
      if (!slot.engine) continue;
      py::object grad = py::reinterpret_steal<py::object>(grad_of(slot.param));
      if (grad.is_none()) continue;
      collect_param(slot, grad.ptr(), hyper.variant);
      updated_.push_back(&slot);
      grads_.push_back(std::move(grad));
    }
  }
  index_ = -1;
}

py::object Plan::step(const py::list& groups, const py::dict& state, int threads,
                      std::optional<double> grad_scale, const py::object& before) {
  if (running_) throw std::runtime_error("this optimizer's step() is already running");
  struct Running {
    Plan& plan;
    explicit Running(Plan& p) : plan(p) { plan.running_ = true; }
    ~Running() {
      plan.grads_.clear();
      plan.updated_.clear();
      plan.running_ = false;
    }
  } running(*this);
  batch_.clear();
  try {
    check_state(state);
    collect(groups, grad_scale);
  } catch (const Changed& changed) {
    return py::make_tuple(index_, changed.what());
  } catch (const Refused& refused) {
    return py::make_tuple(index_, refused.what());
  }
  if (!before.is_none()) before();
  if (updated_.empty()) return py::none();
  py::list params(updated_.size());  // also keeps them while other threads run Python
  for (size_t i = 0; i < updated_.size(); ++i) {
    PyList_SET_ITEM(params.ptr(), Py_ssize_t(i), Py_NewRef(updated_[i]->param));
  }
  increment_versions(params);
  {
    py::gil_scoped_release unlocked;
    batch_.run(threads);
  }
  for (Slot* slot : updated_) slot->first = false;
  return py::none();
}

void update(const std::string& rule_name, const py::list& params, const py::list& grads,
            const std::vector<py::list>& states, const py::list& steps, const std::string& first,
            const std::vector<double>& hyper, bool maximize, std::optional<double> grad_scale,
            int threads) {
  const int rule = find_rule(rule_name);
  Hyper h;
  if (hyper.size() > kMaxHyper) throw std::invalid_argument("too many hyperparameters");
  std::copy(hyper.begin(), hyper.end(), h.values);
  h.variant = kernels().rules[rule].variant(h.values);
  Prologue prologue;
  prologue.maximize = maximize;
  prologue.unscale = grad_scale.has_value();
  prologue.grad_scale = grad_scale.value_or(1);

  Batch batch;
  batch.clear();
  batch.set_group(rule, h.variant, h.values, prologue);
  for (size_t i = 0; i < params.size(); ++i) {
    PyObject* of_param[kMaxStates] = {};
    for (size_t k = 0; k < states.size() && k < kMaxStates; ++k) {
      of_param[k] = PyList_GET_ITEM(states[k].ptr(), Py_ssize_t(i));
    }
    PyObject* step = steps.empty() ? nullptr : PyList_GET_ITEM(steps.ptr(), Py_ssize_t(i));
    try {
      batch.add(PyList_GET_ITEM(params.ptr(), Py_ssize_t(i)),
                PyList_GET_ITEM(grads.ptr(), Py_ssize_t(i)), of_param, step,
                i < first.size() && first[i]);
    } catch (const Refused& refused) {
      throw Refused("params[" + std::to_string(i) + "]: " + refused.what());
    }
  }
  if (params.empty()) return;
  increment_versions(params);
  py::gil_scoped_release unlocked;
  batch.run(threads);
}

std::vector<std::string> state_names(const std::string& rule_name, const py::dict& group) {
  const int rule = find_rule(rule_name);
  const char* const* names = kernels().rules[rule].states[read_hyper(rule, group.ptr()).variant];
  std::vector<std::string> list;
  for (; *names; ++names) list.emplace_back(*names);
  return list;
}

py::dict scalars(const std::string& rule_name, const py::dict& group, double step, bool first) {
  const int index = find_rule(rule_name);
  const Rule& rule = kernels().rules[index];
  double values[kMaxScalars];
  rule.scalars(read_hyper(index, group.ptr()).values, step, first, values);
  py::dict named;
  for (int i = 0; rule.scalar_names[i]; ++i) named[rule.scalar_names[i]] = values[i];
  return named;
}

void stream(const py::list& reads, const py::list& updates, int threads) {
  std::vector<float*> streams;
  int64_t count = -1;
  for (const py::list& list : {updates, reads}) {
    for (const py::handle tensor : list) {
      View view;
      read(tensor.ptr(), &view);
      if (view.dtype != Dtype::float32 || view.ndim != 1 || view.strides[0] != 1 ||
          (count >= 0 && view.numel != count)) {
        throw std::invalid_argument("stream() takes flat contiguous float32 tensors of one length");
      }
      count = view.numel;
      streams.push_back(reinterpret_cast<float*>(view.data));
    }
  }
  const int64_t whole = count / 64;  // shares of whole cache lines; a tail is left out
  const auto run = kernels().stream;
  py::gil_scoped_release unlocked;
#pragma omp parallel num_threads(threads)
  {
    const int64_t size = omp_get_num_threads();
    const int64_t rank = omp_get_thread_num();
    run(streams.data(), int(streams.size()), int(updates.size()), whole * rank / size * 64,
        whole * (rank + 1) / size * 64);
  }
}

}  // namespace fastopt
