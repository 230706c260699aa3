// The parameters of an optimizer: found once, checked for change at every step, and collected in
// one walk over its groups and their states.
#pragma once

#include <pybind11/pybind11.h>

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hyper.h"
#include "members.h"

namespace fastopt {

// Knows where the tensors of each parameter are in `optimizer.state`, so that a step finds them
// without hashing a tensor. Holds no Python reference to parameters or gradients: every pointer
// kept here is compared with what the live containers hold before it is followed.
class Roster {
 public:
  // Who updates a parameter.
  enum Way : char { kTorch, kHere, kLaunched };

  // Of each parameter over all groups: `backends`, "torch" or "none", "cpu" or "triton"; one byte
  // in `first`, 1 where its states exist but have never been written, and in `begins`, likewise its
  // average; `shards`, if any parameter is one.
  Roster(int rule, const pybind11::list& groups, const pybind11::dict& state,
         const std::vector<std::string>& backends, const std::string& first,
         const std::string& begins, const std::vector<Shard>& shards);

  size_t size() const { return slots_.size(); }  // parameters, over all groups

  // What the groups ask for in this step: runs Python, and so may let go of anything.
  const std::vector<Group>& read_groups(const pybind11::list& groups,
                                        std::optional<double> grad_scale);

  // One walk with borrowed pointers, which runs no Python: visit(member, way) for each parameter
  // that has a gradient and is not torch's. Throws Changed, and what Members::read() and the
  // visitor throw. Gradients are held until release(), states by their handles.
  template <class Visit>
  void collect(const pybind11::dict& state, Members& members, const Visit& visit);

  // The parameter being collected: its index over all groups, -1 for none in particular.
  int index = -1;

  // Parameters, then gradients, that the step collected will write.
  pybind11::list written() const;

  // The step collected has been done: states are written. Or it is over: let the gradients go.
  void done();
  void release();

 private:
  struct Item {  // one entry of a parameter's state dict
    PyObject* key;
    PyObject* value;
    int place;  // in Member::tensors; kSecond + a stream, if it is a second plane; or kNowhere
  };
  struct Slot {
    PyObject* param;
    Way way;
    bool first, begins;
    Shard shard;
    PyObject* state = nullptr;  // its dict in optimizer.state
    size_t first_item = 0;      // in items_
    size_t items = 0;
  };
  struct Planned {  // what is asked of a group's parameters; states and kernels depend on it
    size_t params;
    int variant;
    int switches;
    int formats;
    bool here;  // the host needs its numbers
  };
  static constexpr int kNowhere = -1;
  static constexpr int kSecond = kMaxTensors;

  void check_state(const pybind11::dict& state) const;
  void find_states(const Slot& slot, Member& member) const;

  int rule_;
  std::vector<Planned> planned_;
  std::vector<Slot> slots_;  // over all groups
  std::vector<Item> items_;  // of all slots, in one piece: a vector each would be a cache miss each
  std::vector<std::pair<PyObject*, PyObject*>> state_;  // optimizer.state, in its order
  std::deque<Handle> handles_;
  // Filled during a step only.
  std::vector<Group> groups_;
  std::vector<pybind11::object> grads_;
  std::vector<Slot*> collected_;
  std::vector<PyObject*> rewritten_;  // the gradients that are written to
};

template <class Visit>
void Roster::collect(const pybind11::dict& state, Members& members, const Visit& visit) {
  const NoCollection quiet;
  check_state(state);
  if (groups_.size() != planned_.size()) throw Changed("the param groups have changed");
  Member member;
  Slot* slot = slots_.data();
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    if (size_t(PySequence_Fast_GET_SIZE(group.params.ptr())) != planned_[g].params) {
      throw Changed("the parameters of a group have changed");
    }
    PyObject* const* const params = PySequence_Fast_ITEMS(group.params.ptr());
    for (size_t i = 0; i < planned_[g].params; ++i, ++slot) {
      ++index;
      if (params[i] != slot->param) throw Changed("the parameters of a group have changed");
      if (slot->way == kTorch) continue;
      if (group.flagged && slot->way == kHere) {
        throw Changed("its group has come to ask for torch's own step");
      }
      auto grad = pybind11::reinterpret_steal<pybind11::object>(grad_of(slot->param));
      if (grad.is_none()) continue;
      member.index = index;
      member.group = int(g);
      member.of = &group;
      member.shard = slot->shard;
      member.tensors[0] = slot->param;
      member.tensors[1] = grad.ptr();
      member.first = slot->first;
      member.begins = slot->begins;
      find_states(*slot, member);
      members.read(member);
      visit(member, slot->way);
      collected_.push_back(slot);
      if (group.passes.writes_grads()) rewritten_.push_back(grad.ptr());
      grads_.push_back(std::move(grad));
    }
  }
}

}  // namespace fastopt
