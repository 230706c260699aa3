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

Roster::Way way_of(const std::string& backend) {
  if (backend == "torch" || backend == "none") return Roster::kTorch;
  return backend == "triton" ? Roster::kLaunched : Roster::kHere;
}

}  // namespace

Roster::Roster(int rule, const py::list& groups, const py::dict& state,
               const std::vector<std::string>& backends, const std::string& first,
               const std::string& begins, const std::vector<Shard>& shards)
    : rule_(rule) {
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
    // Where each key's tensor is in a member.
    std::vector<std::pair<PyObject*, int>> places;
    const auto place = [&](PyObject* key) { places.emplace_back(key, 2 + int(places.size())); };
    for (PyObject* key : keys_of(rule_).states[group.hyper.variant]) place(key);
    if (group.passes.average) place(average_key);
    for (int k = 0; group.carries[k].name; ++k) place(interned(group.carries[k].name));
    places.emplace_back(low_key, kSecond);
    const Keys& keys = keys_of(rule_);
    int stream = 2;
    for (PyObject* key : keys.codes[group.hyper.variant]) places.emplace_back(key, stream++);
    stream = 2;
    for (PyObject* key : keys.scales[group.hyper.variant]) {
      places.emplace_back(key, kSecond + stream++);
    }
    const auto count = size_t(PySequence_Fast_GET_SIZE(group.params.ptr()));
    planned_.push_back({count, group.hyper.variant, group.passes.switches(), group.formats, false});
    for (size_t i = 0; i < count; ++i) {
      Slot& slot = slots_.emplace_back();
      const size_t at = slots_.size() - 1;
      slot.param = PySequence_Fast_GET_ITEM(group.params.ptr(), Py_ssize_t(i));
      slot.way = way_of(backends.at(at));
      slot.first = first.at(at) != 0;
      slot.begins = begins.at(at) != 0;
      if (!shards.empty()) slot.shard = shards.at(at);
      planned_.back().here |= slot.way == kHere;
      const auto found = state_of.find(slot.param);
      if (slot.way == kTorch || found == state_of.end() || !PyDict_Check(found->second)) continue;
      slot.state = found->second;
      slot.first_item = items_.size();
      Py_ssize_t position = 0;
      PyObject *key, *value;
      while (PyDict_Next(slot.state, &position, &key, &value)) {
        int found_at = kNowhere;
        for (const auto& [name, at] : places) {
          if (PyUnicode_Check(key) && PyUnicode_Compare(key, name) == 0) found_at = at;
        }
        items_.push_back({key, value, found_at});
        if (found_at != kNowhere && value != Py_None) handles_.emplace_back(value);
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
    if (groups_[g].formats != planned_[g].formats) {
      throw Changed("the formats that a group asks for have changed");
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

// Into the member: its states, average and numbers.
void Roster::find_states(const Slot& slot, Member& member) const {
  const Group& group = *member.of;
  std::fill(member.tensors + 2, member.tensors + group.tensors, nullptr);
  member.seconds = 0;
  if (slot.state) {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    const Item* item = items_.data() + slot.first_item;
    const Item* const end = item + slot.items;
    for (; PyDict_Next(slot.state, &position, &key, &value); ++item) {
      if (item == end || key != item->key || value != item->value) {
        throw Changed("its state has changed");
      }
      if (item->place >= kSecond) {
        const int stream = item->place - kSecond;
        member.seconds |= unsigned(value != Py_None) << stream;
        member.second[stream] = value;
      } else if (item->place != kNowhere) {
        member.tensors[item->place] = value;
      }
    }
    if (item != end) throw Changed("its state has changed");
  }
  for (int k = 2; k < group.tensors; ++k) {
    PyObject* const tensor = member.tensors[k];
    if (tensor && (tensor != Py_None || k >= group.streams)) continue;
    throw Changed(std::string("it has no state '") + state_key(group, k) + "'");
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
