// Building a plan, checking it against the live containers, collecting, stepping.
#include "plan.h"

#include <unordered_map>

#include "dispatch.h"
#include "hyper.h"

namespace py = pybind11;

namespace fastopt {

void increment_versions(const py::list& params) {
  static const py::handle increment =
      py::object(py::module_::import("torch.autograd.graph").attr("increment_version")).release();
  increment(params);
}

Plan::Plan(const std::string& rule, const py::list& groups, const py::dict& state,
           const std::string& engine, const std::string& first)
    : rule_(find_rule(rule)) {
  static PyObject* params_key = interned("params");
  static PyObject* step_key = interned("step");
  static PyObject* average_key = interned(kAverageName);
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
        const auto is = [&, key = key](PyObject* name) {
          return PyUnicode_Check(key.ptr()) && PyUnicode_Compare(key.ptr(), name) == 0;
        };
        if (is(step_key)) role = kStep;
        if (is(average_key)) role = kAverage;
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

void Plan::collect_param(Slot& slot, PyObject* grad, int variant, bool average) {
  PyObject* states[kMaxStates + 1] = {};  // the moving average after the rule's own
  PyObject* ema = nullptr;
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
      if (item->role == kAverage) ema = value;
      if (item->role >= 0) states[item->role] = value;
    }
    if (item != end) throw Changed("its state has changed");
  }
  const Rule& rule = kernels().rules[rule_];
  if (rule.counts_steps && !step) throw Changed("it has no state 'step'");
  const char* const* names = rule.states[variant];
  int k = 0;
  for (; names[k]; ++k) {
    if (!states[k] || states[k] == Py_None) {
      throw Changed("it has no state '" + std::string(names[k]) + "'");
    }
  }
  if (average && !ema) throw Changed("it has no state '" + std::string(kAverageName) + "'");
  states[k] = ema;
  batch_.add(index_, slot.param, grad, states, rule.counts_steps ? step : nullptr, slot.first);
}

void Plan::collect(const py::list& groups, std::optional<double> grad_scale) {
  static PyObject* params_key = interned("params");
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
    const Passes passes = read_passes(group, grad_scale);
    batch_.set_group(rule_, hyper.variant, hyper.values, passes);
    for (size_t i = 0; i < slots.size(); ++i) {
      ++index_;
      Slot& slot = slots[i];
      if (PyList_GET_ITEM(params, Py_ssize_t(i)) != slot.param) {
        throw Changed("the parameters of a group have changed");
      }
      if (!slot.engine) continue;
      py::object grad = py::reinterpret_steal<py::object>(grad_of(slot.param));
      if (grad.is_none()) continue;
      collect_param(slot, grad.ptr(), hyper.variant, passes.average);
      updated_.push_back(&slot);
      if (passes.clear_grads) cleared_.push_back(grad.ptr());
      rewritten_ |= passes.writes_grads();
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
      plan.cleared_.clear();
      plan.running_ = false;
    }
  } running(*this);
  batch_.clear();
  rewritten_ = false;
  grad_norm_.reset();
  try {
    check_state(state);
    collect(groups, grad_scale);
  } catch (const Changed& changed) {
    return py::make_tuple(index_, changed.what());
  } catch (const Refused& refused) {
    return py::make_tuple(index_, refused.what());
  }
  py::list written(updated_.size());  // also keeps them while other threads run Python
  for (size_t i = 0; i < updated_.size(); ++i) {
    PyList_SET_ITEM(written.ptr(), Py_ssize_t(i), Py_NewRef(updated_[i]->param));
  }
  if (batch_.needs_norm()) {
    Batch::Norm norm;
    {
      py::gil_scoped_release unlocked;
      norm = batch_.measure(threads);
    }
    grad_norm_ = norm.value;
    if (!norm.finite && batch_.skips_nonfinite()) return py::str("skipped");
  }
  if (!before.is_none()) before();
  if (updated_.empty()) return py::none();
  if (rewritten_) {
    for (const py::object& grad : grads_) written.append(grad);
  }
  increment_versions(written);
  const bool left = batch_.leaves_clearing();
  {
    py::gil_scoped_release unlocked;
    batch_.run(threads);
  }
  if (left) {
    for (PyObject* grad : cleared_) py::handle(grad).attr("zero_")();
  }
  for (Slot* slot : updated_) slot->first = false;
  return py::none();
}

}  // namespace fastopt
