// One optimizer's step: the roster of its parameters, the shares of this CPU and of launches.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "batch.h"
#include "roster.h"
#include "rows.h"

namespace fastopt {

class Plan {
 public:
  using Doubles = pybind11::array_t<double, pybind11::array::c_style>;

  // `backends`, `first`, `begins`: see Roster. `rows`: of the launches, between them all of
  // Triton's parameters, but for those that have no gradient. `passes`, where given: a table
  // [groups, 4] that every step fills: max_grad_norm or -1, max_grad_value or infinity, l1,
  // 1 - ema_decay.
  Plan(const std::string& rule, const pybind11::list& groups, const pybind11::dict& state,
       const std::vector<std::string>& backends, const std::string& first,
       const std::string& begins, const std::vector<Rows*>& rows,
       const std::optional<Doubles>& passes, const std::vector<Shard>& shards);

  // (None or (index, reason), for each parameter that has a gradient and is not torch's a pair: how
  // many others must be updated before it, 0 where no memory is shared; then, where it is compact,
  // (format, rounds, word) of each of its streams, None of a plain one). Before launches are built.
  pybind11::tuple layers(const pybind11::list& groups, const pybind11::dict& state,
                         std::optional<double> grad_scale);

  // One step over all parameters that have a gradient and are not torch's. None when it is done;
  // "skipped" where a gradient is not finite and a group asks for that; else (index of a parameter
  // or -1, reason). A step not done has changed no tensor. `grad_scale` is NaN where only a device
  // knows it. Where given, each is called once: `check`, when all is collected, has the last word:
  // None, or what to return; `agree` makes of the gradients' sums of squares here, one a team, and
  // of whether all are finite, the sum and the answer of all processes; `rest` is torch's share of
  // the step, `launch` the launches'.
  pybind11::object step(const pybind11::list& groups, const pybind11::dict& state, int threads,
                        std::optional<double> grad_scale, const pybind11::object& check,
                        const pybind11::object& agree, const pybind11::object& agree_tensors,
                        const pybind11::object& rest, const pybind11::object& launch);

  // The gradients' norm in the last step, where a group asked for it.
  std::optional<double> grad_norm() const { return grad_norm_; }
  // The statistics of the last step that was done.
  const std::vector<Batch::Stats>& stats() const { return stats_; }

 private:
  struct Running;
  template <class Visit>
  pybind11::object collect(const pybind11::list& groups, const pybind11::dict& state,
                           std::optional<double> grad_scale, const Visit& visit);
  void fill_passes(const std::vector<Group>& groups);

  Roster roster_;
  Members members_;
  Batch batch_;
  std::vector<Rows*> rows_;
  std::vector<std::pair<Rows*, size_t>> row_of_;  // by parameter
  std::optional<Doubles> passes_;
  int teams_ = 1;
  bool launched_ = false;  // at least once: rows know what memory they were planned for
  std::optional<double> grad_norm_;
  std::vector<Batch::Stats> stats_;
  bool running_ = false;
};

// Tell autograd of the coming write, as every in-place operation of torch does.
void increment_versions(const pybind11::list& params);

}  // namespace fastopt
