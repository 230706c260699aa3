// Building a plan, collecting, stepping.
#include "plan.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {
namespace {

constexpr int kPassNumbers = 4;

// None, or what is more than its dtype of each of a parameter's streams.
py::object formats_of(const Member& member) {
  if (!member.compact) return py::none();
  py::tuple formats(size_t(member.of->streams));
  for (int k = 0; k < member.of->streams; ++k) {
    const Stored& stored = member.stored[k];
    formats[size_t(k)] = stored.plain()
                             ? py::object(py::none())
                             : py::make_tuple(kFormatNames[int(stored.format)],
                                              kRoundsNames[int(stored.rounds)], stored.word);
  }
  return formats;
}

}  // namespace

void increment_versions(const py::list& params) {
  static const py::handle increment =
      py::object(py::module_::import("torch.autograd.graph").attr("increment_version")).release();
  increment(params);
}

Plan::Plan(const std::string& rule, const py::list& groups, const py::dict& state,
           const std::vector<std::string>& backends, const std::string& first,
           const std::string& begins, const std::vector<Rows*>& rows,
           const std::optional<Doubles>& passes, const std::vector<Shard>& shards)
    : roster_(find_rule(rule), groups, state, backends, first, begins, shards),
      rows_(rows),
      row_of_(roster_.size()),
      passes_(passes) {
  for (Rows* of : rows_) {
    for (size_t i = 0; i < of->size(); ++i) row_of_.at(size_t(of->index(i))) = {of, i};
  }
  for (const Shard& shard : shards) teams_ = std::max(teams_, shard.team + 1);
  if (passes && passes->size() != py::ssize_t(groups.size()) * kPassNumbers) {
    throw std::invalid_argument("Plan: a table of passes of the wrong size");
  }
}

// While one exists, a step is under way; then it lets go of what it held.
struct Plan::Running {
  Plan& plan;
  explicit Running(Plan& of) : plan(of) {
    if (plan.running_) throw std::runtime_error("this optimizer's step() is already running");
    plan.running_ = true;
  }
  ~Running() {
    plan.roster_.release();
    plan.running_ = false;
  }
};

// visit(member, way) for all; None, or what a step not done returns.
template <class Visit>
py::object Plan::collect(const py::list& groups, const py::dict& state,
                         std::optional<double> grad_scale, const Visit& visit) {
  batch_.clear();
  members_.clear();
  try {
    const std::vector<Group>& now = roster_.read_groups(groups, grad_scale);
    for (const Group& group : now) batch_.set_group(group);
    for (Rows* rows : rows_) rows->begin(now);
    if (passes_) fill_passes(now);
    roster_.collect(state, members_, visit);
    members_.settle(&roster_.index);
    if (!rows_.empty() && launched_ && members_.share_memory() && members_.moved()) {
      throw Changed("memory has come to be shared");
    }
  } catch (const Changed& changed) {
    return py::make_tuple(roster_.index, changed.what());
  } catch (const Refused& refused) {
    return py::make_tuple(roster_.index, refused.what());
  }
  launched_ = true;
  return py::none();
}

void Plan::fill_passes(const std::vector<Group>& groups) {
  double* row = passes_->mutable_data();
  for (const Group& group : groups) {
    const Passes& passes = group.passes;
    *row++ = passes.clip_norm ? passes.max_grad_norm : -1;
    *row++ = passes.max_grad_value;
    *row++ = passes.l1;
    *row++ = 1 - passes.ema_decay;
  }
}

py::tuple Plan::layers(const py::list& groups, const py::dict& state,
                       std::optional<double> grad_scale) {
  const Running running(*this);
  std::vector<py::object> formats;
  const py::object changed =
      collect(groups, state, grad_scale,
              [&](const Member& member, Roster::Way) { formats.push_back(formats_of(member)); });
  launched_ = false;
  py::list found;
  if (changed.is_none()) {
    const std::vector<int> layers = members_.layers();
    for (size_t i = 0; i < layers.size(); ++i) found.append(py::make_tuple(layers[i], formats[i]));
  }
  return py::make_tuple(changed, found);
}

py::object Plan::step(const py::list& groups, const py::dict& state, int threads,
                      std::optional<double> grad_scale, const py::object& check,
                      const py::object& agree, const py::object& agree_tensors,
                      const py::object& rest, const py::object& launch) {
  const Running running(*this);
  grad_norm_.reset();
  const py::object changed =
      collect(groups, state, grad_scale, [&](const Member& member, Roster::Way way) {
        if (way == Roster::kHere) return batch_.add(member);
        const auto [rows, place] = row_of_[size_t(member.index)];
        if (!rows) throw Changed("it has a gradient for the first time");
        rows->add(place, member);
      });
  if (!changed.is_none()) return changed;
  Batch::Agree agree_sums;
  if (!agree_tensors.is_none()) {
    if (members_.share_memory()) {
      return py::make_tuple(-1,
                            "DTensors share memory, which an update that waits for norms of "
                            "all processes does not take");
    }
    agree_sums = [&](std::vector<Batch::TensorSums>& found) {
      const py::gil_scoped_acquire locked;
      py::list places;
      Doubles sums({py::ssize_t(found.size()), py::ssize_t(kMeasures)});
      for (size_t i = 0; i < found.size(); ++i) {
        places.append(found[i].index);
        std::copy_n(found[i].sums.data(), kMeasures, sums.mutable_data(py::ssize_t(i), 0));
      }
      const auto agreed = agree_tensors(places, sums).cast<Doubles>();
      for (size_t i = 0; i < found.size(); ++i) {
        std::copy_n(agreed.data(py::ssize_t(i), 0), kMeasures, found[i].sums.data());
      }
    };
  }
  if (!check.is_none()) {
    py::object refused = check();
    if (!refused.is_none()) return refused;
  }
  // Where there are launches too, the norm is theirs, or torch's: nothing here has passes.
  if (batch_.needs_norm() && launch.is_none()) {
    Batch::Squares squares;
    {
      py::gil_scoped_release unlocked;
      squares = batch_.measure(threads, teams_);
    }
    double sum = squares.sums[0];
    if (!agree.is_none()) {
      std::tie(sum, squares.finite) =
          agree(squares.sums, squares.finite).cast<std::pair<double, bool>>();
    }
    grad_norm_ = batch_.clip(sum);
    if (!squares.finite && batch_.skips_nonfinite()) return py::str("skipped");
  }
  if (!rest.is_none()) {
    rest();
    batch_.reread();  // a step count may be shared with a parameter of torch's share
  }
  increment_versions(roster_.written());
  if (!launch.is_none()) launch();
  for (Rows* rows : rows_) rows->launched();
  {
    py::gil_scoped_release unlocked;
    batch_.run(threads, members_.share_memory(), agree_sums);
  }
  if (batch_.tracks_stats()) stats_ = batch_.stats();
  roster_.done();
  return py::none();
}

}  // namespace fastopt
