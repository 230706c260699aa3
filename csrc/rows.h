// Rows: the share of a step that one launch on a device does: what it takes from the host, in
// tables that the caller owns. No tensor is written, but for the numbers that the host advances.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "members.h"

namespace fastopt {

// One row a parameter:
//
// grads  int64 [rows]: the address of each gradient; 0 where there is none.
// Where the host counts steps:   scalars [rows, 1 + scalars], float32 or float64: the sign of the
//   gradient (-1 to maximize), then the rule's scalars for the step to come.
// Where the device counts them:  hyper float64 and hyper_at int64 [groups, 1 + hyperparameters]:
//   the sign and the numbers of each group; the address of each number that is a tensor on the
//   device (the lowest bit set where it is float64), else 0.
// Of rows in compact formats the noise, keyed by the step. Where the host counts it, keys [rows,
//   kWords]: key_of() the step to come; else seeds [groups]: of each group, mixed once. And begins
//   int32 [rows], where the host counts and there are averages: 1 where one begins with this step.
class Rows {
 public:
  using Int64s = pybind11::array_t<int64_t, pybind11::array::c_style>;
  using Int32s = pybind11::array_t<int32_t, pybind11::array::c_style>;
  using Doubles = pybind11::array_t<double, pybind11::array::c_style>;

  // `params`: (index over all groups, group, strides that the kernel expects of the gradient,
  // address of the gradient's copy that has them, or 0).
  Rows(const std::string& rule, const pybind11::list& params, const Int64s& grads,
       const std::optional<pybind11::array>& scalars, const std::optional<Doubles>& hyper,
       const std::optional<Int64s>& hyper_at, const std::optional<Int64s>& keys,
       const std::optional<Int64s>& seeds, const std::optional<Int32s>& begins);

  size_t size() const { return rows_.size(); }
  int index(size_t row) const { return rows_[row].index; }

  // A new step, with these groups.
  void begin(const std::vector<Group>& groups);

  // A parameter as it was read, in its row. Throws Changed where it is not what it was when it was
  // added first, and the kernel's tables hold other addresses.
  void add(size_t row, const Member& member);

  // The launch is under way: write the numbers that the host advances.
  void launched();

 private:
  struct Row {
    int index, group;
    size_t strides;  // of the gradient, in layouts_
    int64_t stage;
    size_t first = kUnknown;          // of its tensors, in found_
    char* numbers[kMaxCarried] = {};  // that it carries: where they are
    Carried next[kMaxCarried] = {};   // and what they become
  };
  struct Found {  // a tensor when it was added first; shape and strides in layouts_
    const char* data;
    Dtype dtype;
    int ndim;
    size_t layout;
  };
  static constexpr size_t kUnknown = size_t(-1);

  void find(const View& view);
  bool as_found(const Found& found, const View& view) const;
  int64_t gradient(const Row& row, const Member& member) const;
  void write_scalars(size_t row, const Member& member);
  void write_keys(size_t row, const Member& member);

  int rule_;
  std::vector<Row> rows_;
  std::vector<char> used_;  // by group: a row's
  std::vector<Found> found_;
  std::vector<int64_t> layouts_;

  Int64s grads_;
  std::optional<pybind11::array> scalars_;
  std::optional<Doubles> hyper_;
  std::optional<Int64s> hyper_at_, keys_, seeds_;
  std::optional<Int32s> begins_;
  int scalar_count_;
  std::vector<size_t> added_;
  size_t like_ = 0;  // the row whose scalars were computed last, and what they were made of
  Carried like_carried_[kMaxCarried] = {};
  bool like_first_ = false;
};

}  // namespace fastopt
