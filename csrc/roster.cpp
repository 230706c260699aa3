// Building a roster, then, at every step: the groups, what has changed, a parameter's states.
#include "roster.h"

#include <unordered_map>

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {
namespace {

PyObject* item(const py::list& groups, size_t g) {
  return PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g));
}

}  // namespace

Roster::Roster(int rule, const py::list& groups, const py::dict& state, const std::string& ways,
               const std::string& first, const std::string& begins)
    : rule_(rule) {
  static PyObject* step_key = interned("step");
  static PyObject* average_key = interned(kAverageName);
  static PyObject* low_key = interned(kLowName);
  for (size_t g = 0; g < groups.size(); ++g) {
    groups_.push_back(read_group(rule, item(groups, g), std::nullopt, false));
  }
  const NoCollection quiet;
  Py_ssize_t position = 0;
  PyObject *param, *dict;
  std::unordered_map<PyObject*, PyObject*> state_of;
  while (PyDict_Next(state.ptr(), &position, &param, &dict)) {
    state_.emplace_back(param, dict);
    state_of[param] = dict;
  }
  for (const Group& group : groups_) {
    const auto& names = keys_of(rule_).states[group.hyper.variant];
    const auto& scales = keys_of(rule_).scales[group.hyper.variant];
    const auto count = size_t(PySequence_Fast_GET_SIZE(group.params.ptr()));
    planned_.push_back({count, group.hyper.variant, group.passes.switches(), false});
    for (size_t i = 0; i < count; ++i) {
      Slot& slot = slots_.emplace_back();
      const size_t at = slots_.size() - 1;
      slot.param = PySequence_Fast_GET_ITEM(group.params.ptr(), Py_ssize_t(i));
      slot.way = Way(ways.at(at));
      slot.first = first.at(at) != 0;
      slot.begins = begins.at(at) != 0;
      planned_.back().here |= slot.way == kHere;
      const auto found = state_of.find(slot.param);
      if (slot.way == kTorch || found == state_of.end() || !PyDict_Check(found->second)) continue;
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
        if (is(low_key)) role = kSecond;
        for (size_t k = 0; k < names.size(); ++k) {
          if (is(names[k])) role = int(k);
          if (is(scales[k])) role = kSecond + 2 + int(k);
        }
        slot.compact |= role >= kSecond && value != Py_None;
        items_.push_back({key, value, role});
        if (role != kOther && value != Py_None) handles_.emplace_back(value);
      }
      slot.items = items_.size() - slot.first_item;
    }
  }
  groups_.clear();
}

const std::vector<Group>& Roster::read_groups(const py::list& groups,
                                              std::optional<double> grad_scale) {
  index = -1;
  groups_.clear();
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups.size() != planned_.size()) throw Changed("the param groups have changed");
    groups_.push_back(read_group(rule_, item(groups, g), grad_scale, planned_[g].here));
    if (groups_[g].hyper.variant != planned_[g].variant) {
      throw Changed("the states that a group asks for have changed");
    }
    if (groups_[g].passes.switches() != planned_[g].switches) {
      throw Changed("the passes around the update have changed");
    }
  }
  return groups_;
}

void Roster::check_state(const py::dict& state) const {
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

// Into the member: its states, average and step.
void Roster::find_states(const Slot& slot, Member& member) const {
  const Rule& rule = kernels().rules[rule_];
  const bool average = member.of->passes.average;
  const int count = member.of->streams - 2 - average;
  PyObject** const states = member.tensors + 2;
  std::fill_n(states, count + average, nullptr);
  std::fill_n(member.seconds, kMaxStreams, nullptr);
  member.step = nullptr;
  // The noise that rounds is keyed by it, whatever the rule.
  const bool steps = rule.counts_steps || slot.compact || member.of->noisy_states;
  if (slot.state) {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    const Item* item = items_.data() + slot.first_item;
    const Item* const end = item + slot.items;
    for (; PyDict_Next(slot.state, &position, &key, &value); ++item) {
      if (item == end || key != item->key || value != item->value) {
        throw Changed("its state has changed");
      }
      if (item->role >= kSecond) {
        if (value != Py_None) member.seconds[item->role - kSecond] = value;
      } else if (item->role >= 0) {
        states[item->role] = value;
      }
      if (item->role == kAverage && average) states[count] = value;
      if (item->role == kStep && steps) member.step = value;
    }
    if (item != end) throw Changed("its state has changed");
  }
  if (rule.counts_steps && !member.step) throw Changed("it has no state 'step'");
  for (int k = 0; k < count + average; ++k) {
    if (states[k] && states[k] != Py_None) continue;
    const char* name = k < count ? rule.states[member.of->hyper.variant][k].name : kAverageName;
    throw Changed("it has no state '" + std::string(name) + "'");
  }
}

py::list Roster::written() const {
  py::list written(collected_.size() + rewritten_.size());
  Py_ssize_t i = 0;
  for (const Slot* slot : collected_) PyList_SET_ITEM(written.ptr(), i++, Py_NewRef(slot->param));
  for (PyObject* grad : rewritten_) PyList_SET_ITEM(written.ptr(), i++, Py_NewRef(grad));
  return written;
}

void Roster::done() {
  for (Slot* slot : collected_) slot->first = slot->begins = false;
}

void Roster::release() {
  groups_.clear();
  grads_.clear();
  collected_.clear();
  rewritten_.clear();
}

}  // namespace fastopt
