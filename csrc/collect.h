// What a launch on a device takes from the host at every step: containers, then tensors and
// numbers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hyper.h"
#include "tensors.h"

namespace fastopt {

class Collector;
using Extent = std::pair<char*, char*>;  // the first byte and the one behind the last

// The containers of an optimizer as they were at planning: groups, their parameters, the states and
// passes they ask for, the dict of each parameter's states. Compared by address, never followed.
class Containers {
 public:
  using Doubles = pybind11::array_t<double, pybind11::array::c_style>;
  using Int64s = pybind11::array_t<int64_t, pybind11::array::c_style>;

  // `idle`: one byte per parameter over all groups, 1 where it had no gradient and must have none.
  // `passes`, where given: a table [groups, 4] that every check fills: max_grad_norm or -1,
  // max_grad_value or infinity, l1, 1 - ema_decay. `written`: [n, 2], first byte and the one behind
  // the last of all that the launches write beside gradients.
  Containers(const std::string& rule, const pybind11::list& groups, const pybind11::dict& state,
             const std::string& idle, const std::optional<Doubles>& passes, const Int64s& written);

  // None where nothing has changed, else (index of a parameter or -1, what has).
  pybind11::object check(const pybind11::list& groups, const pybind11::dict& state);

  // None, or why gradients just collected cannot be taken in the order planned: they have come to
  // share memory with what is written. The first ones are those that were planned for.
  pybind11::object check_gradients(const std::vector<const Collector*>& collectors);

 private:
  struct Group {
    std::vector<PyObject*> params;
    int variant;
    int switches;  // of its passes
  };

  int rule_;
  std::vector<Group> groups_;
  std::vector<std::pair<PyObject*, PyObject*>> state_;  // optimizer.state, in its order
  std::string idle_;
  std::optional<Doubles> passes_;
  std::vector<Extent> written_;  // sorted, each end that of all before it, too
  std::vector<Extent> known_;    // the gradients that were found good last
  bool planned_ = false;         // there were any
};

// The tensors of one launch. `collect` writes tables that the caller owns, and no tensor.
//
// grads  int64 [slots]: the address of each gradient; 0 where there is none.
// Where the host counts steps:   scalars [slots, 1 + scalars], float32 or float64: the sign of the
//   gradient (-1 to maximize), then the rule's scalars for the step to come.
// Where the device counts them:  hyper float64 and hyper_at int64 [groups, 1 + hyperparameters]:
// the
//   sign and the numbers of each group; the address of each number that is a tensor on the device
//   (the lowest bit set where it is float64), else 0.
class Collector {
 public:
  using Int64s = pybind11::array_t<int64_t, pybind11::array::c_style>;
  using Doubles = pybind11::array_t<double, pybind11::array::c_style>;

  // `slots`: (group, param, its dict in optimizer.state or None, names of its states, step or None,
  // first, strides that the kernel expects of the gradient, address of the gradient's copy or 0,
  // the gradient's dtype).
  // `writes_grads`: the gradients are written too.
  Collector(const std::string& rule, const pybind11::list& slots, bool writes_grads,
            const Int64s& grads, const std::optional<pybind11::array>& scalars,
            const std::optional<Doubles>& hyper, const std::optional<Int64s>& hyper_at);

  // None, or (index in `slots` or -1, reason) where anything is not as it was found.
  pybind11::object collect(const pybind11::list& groups);

  // What the step collected will write.
  pybind11::list written() const;

  // The memory of the gradients collected, and whether they are written.
  const std::vector<Extent>& gradients() const { return gradients_; }
  bool writes_grads() const { return writes_grads_; }

  // The launch is under way: count the steps that the host counts, let the gradients go.
  void launched();

 private:
  struct Expected {  // a tensor as it was found; shape and strides in layouts_
    const char* data;
    size_t layout;
  };
  struct Item {  // one entry of a parameter's state dict
    PyObject* key;
    PyObject* value;
    int tensor;  // its index in expected_, or -1: nothing of ours
  };
  struct Slot {
    PyObject* param;
    PyObject* state;
    int group;
    bool first;
    int64_t stage;
    std::string grad_dtype;
    size_t strides;  // of the gradient, in layouts_
    size_t param_at;
    size_t first_item, items;
    int step = -1;  // in expected_
    bool wide = false;
    void* step_at = nullptr;
    double next = 0;
  };

  size_t expect(PyObject* tensor, View* view);
  bool as_found(const Expected& expected, const View& view) const;
  void read_groups(const pybind11::list& groups);
  int64_t read_grad(const Slot& slot, PyObject* grad, const View& param);
  void write_scalars(size_t index);

  int rule_;
  bool counts_;  // the rule has step counts
  bool writes_grads_;
  std::vector<Slot> slots_;
  std::vector<Item> items_;
  std::vector<Expected> expected_;
  std::vector<int64_t> layouts_;
  std::deque<Handle> handles_;
  std::vector<Hyper> hyper_;  // by group; of the groups of `slots` only
  std::vector<double> signs_;
  std::vector<char> used_;  // by group
  Device device_;

  Int64s grads_;
  std::optional<pybind11::array> scalars_;
  std::optional<Doubles> hyper_table_;
  std::optional<Int64s> hyper_at_;
  int scalar_count_;
  size_t like_ = 0;  // the slot whose scalars were computed last

  std::vector<pybind11::object> held_;  // gradients, until the launch is under way
  std::vector<size_t> updated_;
  std::vector<Extent> gradients_;
};

}  // namespace fastopt
