// The containers; then a launch: building its slots, reading groups, gradients, steps and scalars.
#include "collect.h"

#include <algorithm>

#include "dispatch.h"

namespace py = pybind11;

namespace fastopt {
namespace {

// The address of an empty gradient: its step counts, unlike that of a gradient that is None (0).
constexpr int64_t kNowhere = 16;

struct Changed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int64_t address(const char* data) { return reinterpret_cast<int64_t>(data); }

double sign_of(PyObject* group) {
  static PyObject* maximize_key = interned("maximize");
  return is_true(get(group, maximize_key)) ? -1 : 1;
}

// Whether `view` has these strides, wherever they matter.
bool lies_as(const View& view, const int64_t* strides) {
  if (view.numel == 0) return true;
  for (int d = 0; d < view.ndim; ++d) {
    if (view.shape[d] != 1 && view.strides[d] != strides[d]) return false;
  }
  return true;
}

// Which passes a group asks for: what is compiled, and which buffers there are, depends on it.
int switches_of(const Passes& passes) {
  int bits = 0;
  for (const bool on :
       {passes.clip_norm, passes.max_grad_value != kUnlimited, passes.l1 != 0, passes.average,
        passes.clear_grads, passes.track_stats, passes.skip_nonfinite}) {
    bits = 2 * bits + on;
  }
  return bits;
}

constexpr int kPassNumbers = 4;

// Makes each end of sorted extents that of all before it, too; whether any two of them overlap.
bool furthest_ends(std::vector<Extent>& sorted) {
  bool overlap = false;
  char* end = nullptr;
  for (auto& [from, to] : sorted) {
    overlap |= from < end && from != to;
    end = to = std::max(end, to);
  }
  return overlap;
}

}  // namespace

Containers::Containers(const std::string& rule, const py::list& groups, const py::dict& state,
                       const std::string& idle, const std::optional<Doubles>& passes,
                       const Int64s& written)
    : rule_(find_rule(rule)), idle_(idle), passes_(passes) {
  if (passes && passes->size() != py::ssize_t(groups.size()) * kPassNumbers) {
    throw std::invalid_argument("Containers: a table of the wrong size");
  }
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    const auto group = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), g));
    Group& found = groups_.emplace_back();
    found.variant = read_hyper_without_waiting(rule_, group.ptr()).variant;
    found.switches = switches_of(read_passes(group.ptr(), std::nullopt));
    const py::object params = params_of(group.ptr());
    PyObject** const items = PySequence_Fast_ITEMS(params.ptr());
    found.params.assign(items, items + PySequence_Fast_GET_SIZE(params.ptr()));
  }
  Py_ssize_t position = 0;
  PyObject *key, *value;
  while (PyDict_Next(state.ptr(), &position, &key, &value)) state_.emplace_back(key, value);
  const auto at = [&](py::ssize_t i) { return reinterpret_cast<char*>(written.data()[i]); };
  for (py::ssize_t i = 0; i + 1 < written.size(); i += 2) written_.emplace_back(at(i), at(i + 1));
  std::sort(written_.begin(), written_.end());
  furthest_ends(written_);
}

py::object Containers::check(const py::list& groups, const py::dict& state) {
  const auto changed = [](int64_t index, const char* what) {
    return py::object(py::make_tuple(index, what));
  };
  // The numbers first, for reading them may run Python; what is borrowed below is not held.
  std::vector<py::object> params;
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (size_t(PyList_GET_SIZE(groups.ptr())) != groups_.size()) break;
    const auto group =
        py::reinterpret_borrow<py::object>(PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g)));
    params.push_back(params_of(group.ptr()));
    if (read_hyper_without_waiting(rule_, group.ptr()).variant != groups_[g].variant) {
      return changed(-1, "the states that a group asks for have changed");
    }
    const Passes passes = read_passes(group.ptr(), std::nullopt);
    if (switches_of(passes) != groups_[g].switches) {
      return changed(-1, "the passes around the update have changed");
    }
    if (passes_) {
      double* const row = passes_->mutable_data() + g * kPassNumbers;
      row[0] = passes.clip_norm ? passes.max_grad_norm : -1;
      row[1] = passes.max_grad_value;
      row[2] = passes.l1;
      row[3] = 1 - passes.ema_decay;
    }
  }
  if (params.size() != size_t(PyList_GET_SIZE(groups.ptr())) || params.size() != groups_.size()) {
    return changed(-1, "the param groups have changed");
  }
  const NoCollection quiet;
  int64_t index = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const std::vector<PyObject*>& known = groups_[g].params;
    if (size_t(PySequence_Fast_GET_SIZE(params[g].ptr())) != known.size() ||
        !std::equal(known.begin(), known.end(), PySequence_Fast_ITEMS(params[g].ptr()))) {
      return changed(-1, "the parameters of a group have changed");
    }
    for (PyObject* param : known) {
      if (idle_.at(size_t(index)) && !py::reinterpret_steal<py::object>(grad_of(param)).is_none()) {
        return changed(index, "it has a gradient for the first time");
      }
      ++index;
    }
  }
  Py_ssize_t position = 0;
  PyObject *key, *value;
  size_t i = 0;
  for (; PyDict_Next(state.ptr(), &position, &key, &value); ++i) {
    if (i >= state_.size() || key != state_[i].first || value != state_[i].second) break;
  }
  if (i != state_.size() || i != state.size()) return changed(-1, "optimizer.state has changed");
  return py::none();
}

// Nothing is looked up while the addresses stay what they were in the last step.
py::object Containers::check_gradients(const std::vector<const Collector*>& collectors) {
  std::vector<Extent> found;
  bool writes = false;
  for (const Collector* collector : collectors) {
    writes |= collector->writes_grads();
    found.insert(found.end(), collector->gradients().begin(), collector->gradients().end());
  }
  if (planned_ && found != known_) {
    bool shared = false;
    for (const auto& [from, to] : found) {
      const auto behind = std::lower_bound(
          written_.begin(), written_.end(), to,
          [](const Extent& extent, const char* address) { return extent.first < address; });
      shared |= from != to && behind != written_.begin() && (behind - 1)->second > from;
    }
    std::vector<Extent> sorted = found;
    std::sort(sorted.begin(), sorted.end());
    shared |= writes && furthest_ends(sorted);
    if (shared) return py::make_tuple(-1, "memory has come to be shared");
  }
  planned_ = true;
  known_ = std::move(found);
  return py::none();
}

Collector::Collector(const std::string& rule, const py::list& slots, bool writes_grads,
                     const Int64s& grads, const std::optional<py::array>& scalars,
                     const std::optional<Doubles>& hyper, const std::optional<Int64s>& hyper_at)
    : rule_(find_rule(rule)),
      counts_(kernels().rules[rule_].counts_steps),
      writes_grads_(writes_grads),
      grads_(grads),
      scalars_(scalars),
      hyper_table_(hyper),
      hyper_at_(hyper_at),
      scalar_count_(0) {
  while (kernels().rules[rule_].scalar_names[scalar_count_]) ++scalar_count_;
  slots_.reserve(slots.size());
  for (const py::handle given : slots) {
    const auto row = py::reinterpret_borrow<py::tuple>(given);
    Slot& slot = slots_.emplace_back();
    slot.group = row[0].cast<int>();
    slot.param = row[1].ptr();
    slot.state = row[2].is_none() ? nullptr : row[2].ptr();
    const py::object names = row[3], step = row[4];
    slot.first = row[5].cast<bool>();
    slot.stage = row[7].cast<int64_t>();
    slot.grad_dtype = row[8].cast<std::string>();
    View view;
    slot.param_at = expect(slot.param, &view);
    device_ = view.device;
    slot.first_item = items_.size();
    if (slot.state) {
      for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(slot.state)) {
        Item& item = items_.emplace_back(Item{key.ptr(), value.ptr(), -1});
        const bool counted = !step.is_none() && value.ptr() == step.ptr();
        if (!counted && !names.contains(key)) continue;
        item.tensor = int(expect(item.value, &view));
        handles_.emplace_back(item.value);
        if (!counted) continue;
        slot.step = item.tensor;
        slot.step_at = view.data;
        slot.wide = view.dtype == Dtype::float64;
      }
    }
    slot.items = items_.size() - slot.first_item;
    slot.strides = layouts_.size();
    for (const py::handle stride : row[6]) layouts_.push_back(stride.cast<int64_t>());
    if (size_t(slot.group) >= used_.size()) used_.resize(size_t(slot.group) + 1);
    used_[size_t(slot.group)] = 1;
  }
  hyper_.resize(used_.size());
  signs_.resize(used_.size());
  const auto rows = py::ssize_t(slots_.size());
  const py::ssize_t row_bytes = scalars_ ? (1 + scalar_count_) * scalars_->itemsize() : 0;
  if (grads_.size() != rows || scalars_.has_value() == hyper_table_.has_value() ||
      hyper_table_.has_value() != hyper_at_.has_value() ||
      (scalars_ && scalars_->nbytes() != rows * row_bytes)) {
    throw std::invalid_argument("Collector: tables of the wrong sizes");
  }
}

size_t Collector::expect(PyObject* tensor, View* view) {
  read_anywhere(tensor, view);
  expected_.push_back({view->data, layouts_.size()});
  layouts_.push_back(view->ndim);
  layouts_.insert(layouts_.end(), view->shape, view->shape + view->ndim);
  layouts_.insert(layouts_.end(), view->strides, view->strides + view->ndim);
  return expected_.size() - 1;
}

bool Collector::as_found(const Expected& expected, const View& view) const {
  const int64_t* layout = layouts_.data() + expected.layout;
  return view.data == expected.data && view.ndim == layout[0] &&
         std::equal(view.shape, view.shape + view.ndim, layout + 1) &&
         std::equal(view.strides, view.strides + view.ndim, layout + 1 + view.ndim);
}

void Collector::read_groups(const py::list& groups) {
  if (groups.size() < used_.size()) throw Changed("the param groups have changed");
  for (size_t g = 0; g < used_.size(); ++g) {
    if (!used_[g]) continue;
    PyObject* group = PyList_GET_ITEM(groups.ptr(), Py_ssize_t(g));
    const Hyper& hyper = hyper_[g] = read_hyper_without_waiting(rule_, group, &device_);
    signs_[g] = sign_of(group);
    if (!hyper_table_) {
      if (std::any_of(hyper.at, hyper.at + hyper.count, [](int64_t at) { return at != 0; })) {
        throw Changed("a hyperparameter has become a tensor on a device");
      }
      continue;
    }
    auto values = hyper_table_->mutable_unchecked<2>();
    auto addresses = hyper_at_->mutable_unchecked<2>();
    if (values.shape(1) != 1 + hyper.count || addresses.shape(1) != 1 + hyper.count ||
        values.shape(0) <= py::ssize_t(g) || addresses.shape(0) <= py::ssize_t(g)) {
      throw Changed("a group has another number of hyperparameters");
    }
    const auto row = py::ssize_t(g);
    values(row, 0) = signs_[g];
    for (int k = 0; k < hyper.count; ++k) {
      values(row, 1 + k) = hyper.at[k] ? 0 : hyper.values[k];
      addresses(row, 1 + k) = hyper.at[k];
    }
  }
}

int64_t Collector::read_grad(const Slot& slot, PyObject* grad, const View& param) {
  View view;
  try {
    read_anywhere(grad, &view);
    if (may_be_lazy(view)) refuse_lazy_views(grad);
  } catch (const Refused& refused) {
    throw Refused(std::string("its gradient ") + refused.what());
  }
  if (!(view.device == param.device)) throw Changed("its gradient is on another device");
  if (!fits(view, param) || slot.grad_dtype != dtype_name(view)) {
    throw Changed("its gradient has another dtype or shape");
  }
  if (writes_grads_ && overlaps_itself(view)) {
    throw Changed("its gradient has become an expanded one");
  }
  gradients_.push_back(extent(view));
  if (slot.stage) return slot.stage;
  if (!lies_as(view, layouts_.data() + slot.strides)) {
    throw Changed("its gradient's layout has changed");
  }
  return view.data ? address(view.data) : kNowhere;
}

void Collector::write_scalars(size_t index) {
  const Slot& slot = slots_[index];
  const Slot& like = slots_[like_];
  const auto row_bytes = size_t(scalars_->itemsize()) * size_t(1 + scalar_count_);
  char* const table = static_cast<char*>(scalars_->mutable_data());
  char* const row = table + index * row_bytes;
  if (!updated_.empty() && slot.group == like.group && slot.next == like.next &&
      slot.first == like.first) {
    std::copy_n(table + like_ * row_bytes, row_bytes, row);
    return;
  }
  double values[1 + kMaxScalars] = {signs_[size_t(slot.group)]};
  kernels().rules[rule_].scalars(hyper_[size_t(slot.group)].values, slot.next, slot.first,
                                 values + 1);
  if (scalars_->itemsize() == sizeof(double)) {
    std::copy_n(values, 1 + scalar_count_, reinterpret_cast<double*>(row));
  } else {
    std::copy_n(values, 1 + scalar_count_, reinterpret_cast<float*>(row));
  }
  like_ = index;
}

py::object Collector::collect(const py::list& groups) {
  held_.clear();
  updated_.clear();
  gradients_.clear();
  int64_t index = -1;
  int64_t* const grads = grads_.mutable_data();
  try {
    read_groups(groups);
    for (Slot& slot : slots_) {
      ++index;
      grads[index] = 0;
      py::object grad = py::reinterpret_steal<py::object>(grad_of(slot.param));
      if (grad.is_none()) continue;
      View view;
      read_anywhere(slot.param, &view);
      if (!as_found(expected_[slot.param_at], view)) throw Changed("its memory has changed");
      grads[index] = read_grad(slot, grad.ptr(), view);
      if (slot.state) {
        Py_ssize_t position = 0;
        PyObject *key, *value;
        const Item* item = items_.data() + slot.first_item;
        const Item* const end = item + slot.items;
        for (; PyDict_Next(slot.state, &position, &key, &value); ++item) {
          if (item == end || key != item->key || value != item->value) {
            throw Changed("its state has changed");
          }
          if (item->tensor < 0) continue;
          read_anywhere(value, &view);
          if (!as_found(expected_[size_t(item->tensor)], view)) {
            throw Changed("the memory of its state has changed");
          }
        }
        if (item != end) throw Changed("its state has changed");
      }
      if (scalars_) {
        // Counted in its own type, as torch does: float32 stops at 2**24.
        if (counts_) {
          slot.next = slot.wide ? *static_cast<double*>(slot.step_at) + 1
                                : double(*static_cast<float*>(slot.step_at) + 1);
        }
        write_scalars(size_t(index));
      }
      updated_.push_back(size_t(index));
      held_.push_back(std::move(grad));
    }
  } catch (const Changed& changed) {
    return py::make_tuple(index, changed.what());
  } catch (const Refused& refused) {
    return py::make_tuple(index, refused.what());
  }
  return py::none();
}

py::list Collector::written() const {
  py::list written(updated_.size());
  for (size_t i = 0; i < updated_.size(); ++i) {
    PyList_SET_ITEM(written.ptr(), Py_ssize_t(i), Py_NewRef(slots_[updated_[i]].param));
  }
  if (writes_grads_) {
    for (const py::object& grad : held_) written.append(grad);
  }
  return written;
}

void Collector::launched() {
  for (const size_t index : updated_) {
    Slot& slot = slots_[index];
    if (scalars_ && counts_) {
      if (slot.wide) {
        *static_cast<double*>(slot.step_at) = slot.next;
      } else {
        *static_cast<float*>(slot.step_at) = float(slot.next);
      }
    }
    slot.first = false;
  }
  held_.clear();
}

}  // namespace fastopt
