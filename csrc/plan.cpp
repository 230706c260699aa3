// Building a plan, checking it against the live containers, collecting, stepping.
#include "plan.h"

#include <unordered_map>

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {

void increment_versions(const py::list& params) {
  static const py::handle increment =
      py::object(py::module_::import("torch.autograd.graph").attr("increment_version")).release();
  increment(params);
}

Plan::Plan(const std::string& rule, const py::list& groups, const py::dict& state,
           const std::string& engine, const std::string& first, const std::string& begins)
    : rule_(find_rule(rule)) {
  static PyObject* step_key = interned("step");
  static PyObject* average_key = interned(kAverageName);
  read_groups(groups, std::nullopt);
  const NoCollection quiet;
  Py_ssize_t position = 0;
  PyObject *param, *dict;
  std::unordered_map<PyObject*, PyObject*> state_of;
  while (PyDict_Next(state.ptr(), &position, &param, &dict)) {
    state_.emplace_back(param, dict);
    state_of[param] = dict;
  }
  size_t index = 0;
  for (const Group& group : groups_) {
    std::vector<Slot>& slots = slots_.emplace_back();
    const auto& names = keys_of(rule_).states[group.hyper.variant];
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(group.params.ptr()); ++i) {
      Slot& slot = slots.emplace_back();
      slot.param = PySequence_Fast_GET_ITEM(group.params.ptr(), i);
      slot.engine = engine.at(index) != 0;
      slot.first = first.at(index) != 0;
      slot.begins = begins.at(index) != 0;
      ++index;
      const auto found = state_of.find(slot.param);
      if (!slot.engine || found == state_of.end() || !PyDict_Check(found->second)) continue;
      slot.state = found->second;
      slot.first_item = items_.size();
      Py_ssize_t place = 0;
      PyObject *key, *value;
      while (PyDict_Next(slot.state, &place, &key, &value)) {
        int role = kOther;
        const auto is = [&](PyObject* name) {
          return PyUnicode_Check(key) && PyUnicode_Compare(key, name) == 0;
        };
        if (is(step_key)) role = kStep;
        if (is(average_key)) role = kAverage;
        for (size_t k = 0; k < names.size(); ++k) {
          if (is(names[k])) role = int(k);
        }
        items_.push_back({key, value, role});
        if (role != kOther && value != Py_None) handles_.emplace_back(value);
      }
      slot.items = items_.size() - slot.first_item;
    }
  }
  groups_.clear();
}

void Plan::read_groups(const py::list& groups, std::optional<double> grad_scale) {
  static PyObject* differentiable = interned("differentiable");
  static PyObject* capturable = interned("capturable");
  groups_.clear();
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    const auto group = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), g));
    Group& now = groups_.emplace_back();
    now.hyper = read_hyper(rule_, group.ptr());
    now.passes = read_passes(group.ptr(), grad_scale);
    now.flagged = is_set(group.ptr(), differentiable) || is_set(group.ptr(), capturable);
    now.params = params_of(group.ptr());
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
  const Rule::State* known = rule.states[variant];
  int k = 0;
  for (; known[k].name; ++k) {
    if (!states[k] || states[k] == Py_None) {
      throw Changed("it has no state '" + std::string(known[k].name) + "'");
    }
  }
  if (average && !ema) throw Changed("it has no state '" + std::string(kAverageName) + "'");
  states[k] = ema;
  batch_.add(index_, slot.param, grad, states, rule.counts_steps ? step : nullptr, slot.first,
             slot.begins);
}

void Plan::collect() {
  if (groups_.size() != slots_.size()) throw Changed("the param groups have changed");
  for (size_t g = 0; g < groups_.size(); ++g) {
    const auto& [hyper, passes, params, flagged] = groups_[g];
    std::vector<Slot>& slots = slots_[g];
    if (size_t(PySequence_Fast_GET_SIZE(params.ptr())) != slots.size()) {
      throw Changed("the parameters of a group have changed");
    }
    PyObject* const* const items = PySequence_Fast_ITEMS(params.ptr());
    batch_.set_group(rule_, hyper.variant, hyper.values, passes);
    for (size_t i = 0; i < slots.size(); ++i) {
      ++index_;
      Slot& slot = slots[i];
      if (items[i] != slot.param) {
        throw Changed("the parameters of a group have changed");
      }
      if (!slot.engine) continue;
      if (flagged) throw Changed("its group has come to ask for torch's own step");
      py::object grad = py::reinterpret_steal<py::object>(grad_of(slot.param));
      if (grad.is_none()) continue;
      collect_param(slot, grad.ptr(), hyper.variant, passes.average);
      updated_.push_back(&slot);
      if (passes.writes_grads()) rewritten_.push_back(grad.ptr());
      grads_.push_back(std::move(grad));
    }
  }
}

py::object Plan::step(const py::list& groups, const py::dict& state, int threads,
                      std::optional<double> grad_scale, const py::object& before) {
  if (running_) throw std::runtime_error("this optimizer's step() is already running");
  struct Running {
    Plan& plan;
    explicit Running(Plan& p) : plan(p) { plan.running_ = true; }
    ~Running() {
      plan.groups_.clear();
      plan.grads_.clear();
      plan.updated_.clear();
      plan.rewritten_.clear();
      plan.running_ = false;
    }
  } running(*this);
  batch_.clear();
  grad_norm_.reset();
  index_ = -1;
  py::list written;
  try {
    read_groups(groups, grad_scale);
    {
      const NoCollection quiet;
      check_state(state);
      collect();
      written = py::list(updated_.size() + rewritten_.size());
      Py_ssize_t i = 0;
      for (const Slot* slot : updated_) PyList_SET_ITEM(written.ptr(), i++, Py_NewRef(slot->param));
      for (PyObject* grad : rewritten_) PyList_SET_ITEM(written.ptr(), i++, Py_NewRef(grad));
    }
    batch_.settle(&index_);
  } catch (const Changed& changed) {
    return py::make_tuple(index_, changed.what());
  } catch (const Refused& refused) {
    return py::make_tuple(index_, refused.what());
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
  increment_versions(written);
  {
    py::gil_scoped_release unlocked;
    batch_.run(threads);
  }
  if (batch_.tracks_stats()) stats_ = batch_.stats();
  for (Slot* slot : updated_) slot->first = slot->begins = false;
  return py::none();
}

}  // namespace fastopt
