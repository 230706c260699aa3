// The tensors of an optimizer's step: found once, checked for change and collected every step.
#pragma once

#include <pybind11/pybind11.h>

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "hyper.h"

namespace fastopt {

// Where the tensors of each parameter are in `optimizer.state`, so that a step finds them without
// hashing a tensor. Holds no Python reference to parameters or gradients: every pointer kept here
// is compared with what the live containers hold before it is followed.
class Plan {
 public:
  // `engine`: one byte per parameter over all groups, 1 where the engine updates it. `first`: one
  // byte per parameter, 1 where its states exist but have never been written; `begins`: likewise
  // where its average has not.
  Plan(const std::string& rule, const pybind11::list& groups, const pybind11::dict& state,
       const std::string& engine, const std::string& first, const std::string& begins);

  // One step over all engine parameters that have a gradient. None when it is done; "skipped" where
  // a gradient is not finite and a group asks for that; else (index of a parameter or -1, reason).
  // A step not done has changed no tensor. `before`, where given, is called once all is checked and
  // nothing yet written: other backends' share of the step.
  //
  // What may run Python, and so let go of anything, comes first (the groups' numbers) and last
  // (asking tensors that may be lazy); between them containers are walked with borrowed pointers.
  pybind11::object step(const pybind11::list& groups, const pybind11::dict& state, int threads,
                        std::optional<double> grad_scale, const pybind11::object& before);

  // The gradients' norm in the last step, where a group asked for it.
  std::optional<double> grad_norm() const { return grad_norm_; }
  // The statistics of the last step that was done.
  const std::vector<Batch::Stats>& stats() const { return stats_; }

 private:
  struct Changed : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  struct Group {  // what a param group asks for in this step
    Hyper hyper;
    Passes passes;
    pybind11::object params;
    bool flagged;  // it asks for torch's own step
  };
  struct Item {  // one entry of a parameter's state dict
    PyObject* key;
    PyObject* value;
    int role;  // index of the rule's state, kStep, kAverage or kOther
  };
  struct Slot {
    PyObject* param;
    bool engine;
    bool first, begins;
    PyObject* state = nullptr;  // its dict in optimizer.state
    size_t first_item = 0;      // in items_
    size_t items = 0;
  };
  static constexpr int kStep = -1;
  static constexpr int kOther = -2;
  static constexpr int kAverage = -3;

  void read_groups(const pybind11::list& groups, std::optional<double> grad_scale);
  void check_state(const pybind11::dict& state) const;
  void collect();
  void collect_param(Slot& slot, PyObject* grad, int variant, bool average);

  int rule_;
  std::vector<std::vector<Slot>> slots_;  // by group
  std::vector<Item> items_;  // of all slots, in one piece: a vector each would be a cache miss each
  std::vector<std::pair<PyObject*, PyObject*>> state_;  // optimizer.state, in its order
  std::deque<Handle> handles_;
  Batch batch_;
  // Filled during a step only. Parameters and gradients are held while the engine works on them,
  // for another thread may run Python then; states are, by their handles.
  std::vector<Group> groups_;
  std::vector<pybind11::object> grads_;
  std::vector<Slot*> updated_;
  std::vector<PyObject*> rewritten_;  // the gradients that are written to
  std::optional<double> grad_norm_;
  std::vector<Batch::Stats> stats_;
  int index_ = -1;  // of the parameter being collected
  bool running_ = false;
};

// Tell autograd of the coming write, as every in-place operation of torch does.
void increment_versions(const pybind11::list& params);

}  // namespace fastopt
