// Building rows; a step's groups; a parameter: its tensors, its gradient, its scalars.
#include "rows.h"

#include <algorithm>

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {
namespace {

// The address of an empty gradient: its step counts, unlike that of a gradient that is None (0).
constexpr int64_t kNowhere = 16;

double sign_of(const Group& group) { return group.passes.maximize ? -1 : 1; }

// Whether `view` has these strides, wherever they matter.
bool lies_as(const View& view, const int64_t* strides) {
  if (view.numel == 0) return true;
  for (int d = 0; d < view.ndim; ++d) {
    if (view.shape[d] != 1 && view.strides[d] != strides[d]) return false;
  }
  return true;
}

}  // namespace

Rows::Rows(const std::string& rule, const py::list& params, const Int64s& grads,
           const std::optional<py::array>& scalars, const std::optional<Doubles>& hyper,
           const std::optional<Int64s>& hyper_at, const std::optional<Int64s>& keys,
           const std::optional<Int64s>& seeds, const std::optional<Int32s>& begins)
    : rule_(find_rule(rule)),
      grads_(grads),
      scalars_(scalars),
      hyper_(hyper),
      hyper_at_(hyper_at),
      keys_(keys),
      seeds_(seeds),
      begins_(begins),
      scalar_count_(length(kernels().rules[rule_].scalar_names)) {
  for (const py::handle given : params) {
    const auto of = py::reinterpret_borrow<py::tuple>(given);
    rows_.push_back({of[0].cast<int>(), of[1].cast<int>(), layouts_.size(), of[3].cast<int64_t>()});
    for (const py::handle stride : of[2]) layouts_.push_back(stride.cast<int64_t>());
    const auto group = size_t(rows_.back().group);
    if (group >= used_.size()) used_.resize(group + 1);
    used_[group] = 1;
  }
  const auto rows = py::ssize_t(rows_.size());
  const py::ssize_t row_bytes = scalars_ ? (1 + scalar_count_) * scalars_->itemsize() : 0;
  if (grads_.size() != rows || scalars_.has_value() == hyper_.has_value() ||
      hyper_.has_value() != hyper_at_.has_value() ||
      (scalars_ && scalars_->nbytes() != rows * row_bytes) ||
      (keys_ && (!scalars_ || keys_->size() != rows * kWords)) ||
      (seeds_ && (!hyper_ || seeds_->size() != hyper_->shape(0))) ||
      (begins_ && begins_->size() != rows)) {
    throw std::invalid_argument("Rows: tables of the wrong sizes");
  }
}

void Rows::begin(const std::vector<Group>& groups) {
  added_.clear();
  std::fill_n(grads_.mutable_data(), rows_.size(), 0);
  for (size_t g = 0; g < used_.size(); ++g) {
    if (!used_[g]) continue;
    const Hyper& hyper = groups.at(g).hyper;
    if (!hyper_) {
      if (hyper.on_device) throw Changed("a hyperparameter has become a tensor on a device");
      continue;
    }
    auto values = hyper_->mutable_unchecked<2>();
    auto addresses = hyper_at_->mutable_unchecked<2>();
    const auto row = py::ssize_t(g);
    if (values.shape(1) != 1 + hyper.count || addresses.shape(1) != 1 + hyper.count ||
        values.shape(0) <= row || addresses.shape(0) <= row) {
      throw Changed("a group has another number of hyperparameters");
    }
    values(row, 0) = sign_of(groups[g]);
    if (seeds_) seeds_->mutable_at(row) = int64_t(mix64(groups[g].rounding_seed));
    for (int k = 0; k < hyper.count; ++k) {
      values(row, 1 + k) = hyper.at[k] ? 0 : hyper.values[k];
      addresses(row, 1 + k) = hyper.at[k];
    }
  }
}

void Rows::find(const View& view) {
  found_.push_back({view.data, view.dtype, view.ndim, layouts_.size()});
  layouts_.insert(layouts_.end(), view.shape, view.shape + view.ndim);
  layouts_.insert(layouts_.end(), view.strides, view.strides + view.ndim);
}

bool Rows::as_found(const Found& found, const View& view) const {
  const int64_t* layout = layouts_.data() + found.layout;
  return view.data == found.data && view.dtype == found.dtype && view.ndim == found.ndim &&
         std::equal(view.shape, view.shape + view.ndim, layout) &&
         std::equal(view.strides, view.strides + view.ndim, layout + view.ndim);
}

void Rows::add(size_t place, const Member& member) {
  Row& row = rows_[place];
  const int tensors = member.of->tensors;
  const Hyper& hyper = member.of->hyper;
  if (hyper.on_device && !(hyper.device == member.views[0].device)) {
    throw Refused("its group's " + py::str(hyper.on_device).cast<std::string>() +
                  " is a tensor on another device than the parameter; move it there, or give the "
                  "parameters of each device a group of their own");
  }
  if (row.first == kUnknown) {
    row.first = found_.size();
    for (int k = 0; k < tensors; ++k) find(member.views[k]);
    for (int k = 0; k < kMaxStreams; ++k) {
      if (member.has_second(k)) find(member.second_views[k]);
    }
  }
  const Found* found = found_.data() + row.first;
  for (int k = 0; k < tensors; ++k, ++found) {
    if (k == 1) {
      if (found->dtype != member.views[1].dtype) throw Changed("its gradient has another dtype");
    } else if (!as_found(*found, member.views[k])) {
      throw Changed(k == 0 ? "its memory has changed" : "the memory of its state has changed");
    }
  }
  for (int k = 0; k < kMaxStreams; ++k) {
    if (member.has_second(k) && !as_found(*found++, member.second_views[k])) {
      throw Changed("the memory of its state has changed");
    }
  }
  grads_.mutable_data()[place] = gradient(row, member);
  if (scalars_) write_scalars(place, member);
  if (keys_) write_keys(place, member);
  if (begins_) begins_->mutable_at(py::ssize_t(place)) = member.begins;
  added_.push_back(place);
}

int64_t Rows::gradient(const Row& row, const Member& member) const {
  const View& view = member.views[1];
  if (row.stage) return row.stage;
  if (!lies_as(view, layouts_.data() + row.strides)) {
    throw Changed("its gradient's layout has changed");
  }
  return view.data ? reinterpret_cast<int64_t>(view.data) : kNowhere;
}

void Rows::write_scalars(size_t place, const Member& member) {
  Row& row = rows_[place];
  const Row& like = rows_[like_];
  const auto row_bytes = size_t(scalars_->itemsize()) * size_t(1 + scalar_count_);
  char* const table = static_cast<char*>(scalars_->mutable_data());
  char* const at = table + place * row_bytes;
  const int numbers = member.of->tensors - member.of->streams;
  Carried carried[kMaxCarried] = {};
  for (int k = 0; k < numbers; ++k) {
    const View& number = member.number(k);
    if (!number.device.on_cpu()) throw Changed("a number of its state has moved");
    carried[k] = load(number.data, number.dtype == Dtype::float64);
    row.numbers[k] = number.data;
  }
  if (!added_.empty() && row.group == like.group && member.first == like_first_ &&
      std::equal(carried, carried + numbers, like_carried_)) {
    std::copy_n(like.next, numbers, row.next);
    std::copy_n(table + like_ * row_bytes, row_bytes, at);
    return;
  }
  std::copy_n(carried, kMaxCarried, like_carried_);
  double values[1 + kMaxScalars] = {sign_of(*member.of)};
  kernels().rules[rule_].scalars(member.of->hyper.values, carried, member.first, values + 1);
  std::copy_n(carried, kMaxCarried, row.next);
  if (scalars_->itemsize() == sizeof(double)) {
    std::copy_n(values, 1 + scalar_count_, reinterpret_cast<double*>(at));
  } else {
    std::copy_n(values, 1 + scalar_count_, reinterpret_cast<float*>(at));
  }
  like_ = place;
  like_first_ = member.first;
}

void Rows::write_keys(size_t place, const Member& member) {
  const auto step = uint64_t(rows_[place].next[0].value);
  for (int word = 0; word < kWords; ++word) {
    const uint64_t key = key_of(member.of->rounding_seed, step, uint64_t(member.index), word);
    keys_->mutable_data()[place * kWords + size_t(word)] = int64_t(key);
  }
}

void Rows::launched() {
  for (const size_t added : added_) {
    const Row& row = rows_[added];
    for (int k = 0; k < kMaxCarried && row.numbers[k]; ++k) store(row.next[k], row.numbers[k]);
  }
}

}  // namespace fastopt
