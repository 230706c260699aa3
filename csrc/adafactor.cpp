// Adafactor's step: reading, then small parameters each by one thread, then large ones by all.
#include "adafactor.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "dispatch.h"
#include "members.h"
#include "parallel.h"
#include "plan.h"
#include "whole.h"

namespace py = pybind11;

namespace fastopt {
namespace {

// A parameter is swept by units of about so many numbers, whatever the threads, in whose order all
// sums are added: 128 KiB of float32, so that what one sweep has read of a small parameter is still
// in the L2 cache for the next one; at least so many rows, as each unit of a matrix of several has
// sums of its columns of its own.
constexpr int64_t kUnit = 1 << 15, kUnitRows = 16;
// Up to so many numbers one thread takes a parameter, and threads share the parameters among them,
// and up to this part of a thread's share of all. Beyond, all share its units, at four or five
// parallel regions a parameter, which wait for whoever is not running: sharing each above 2^17,
// ResNet-50's step took 545 ms on two threads of a busy machine, 248 like this, 258 on one.
constexpr int64_t kAlone = 1 << 17, kParts = 4;

struct Work {
  Adafactor a;
  const AdafactorKernels* kernels;
  bool (*square_sums)(const char*, int64_t, double*);
  int64_t bytes;          // of a number as it is stored
  int64_t numbers_bytes;  // of one as it is computed with
  double d, least_scale, rate;
};

// What sweeps leave for one another; reused from parameter to parameter.
struct Room {
  std::vector<double> row_sums, col_sums, norms;
  std::vector<char> by_row, by_col, scales;
};

// The sweeps of one parameter, each over units in any order.
class Sweeps {
 public:
  Sweeps(Work* work, Room* room) : w_(*work), a_(work->a), room_(*room) {
    const int64_t size = w_.numbers_bytes;
    small_ = !a_.col || is_small(a_);
    if (small_) {
      const int64_t each = a_.col ? a_.rows * a_.cols : 1;
      places_ = a_.col ? a_.matrices : a_.count;
      unit_ = std::max<int64_t>(1, kUnit / each);
      unit_ = a_.col ? (unit_ + kTileMatrices - 1) / kTileMatrices * kTileMatrices : unit_;
      per_place_ = each;
      units_ = (places_ + unit_ - 1) / unit_;
      grow(room_.scales, a_.count * size);
    } else {
      unit_ = std::min(a_.rows, std::max(kUnitRows, kUnit / a_.cols));
      units_per_matrix_ = (a_.rows + unit_ - 1) / unit_;
      units_ = a_.matrices * units_per_matrix_;
      per_place_ = a_.cols;
      grow(room_.row_sums, a_.matrices * a_.rows);
      grow(room_.col_sums, units_ * padded(a_.cols));
      grow(room_.by_row, a_.matrices * a_.rows * size);
      grow(room_.by_col, a_.matrices * padded(a_.cols) * size);
    }
    grow(room_.norms, units_);
  }

  int64_t units() const { return units_; }

  // Sums of squares; where no matrix has several units, all factors.
  void first(int64_t unit) {
    const auto [from, to] = range(unit);
    if (small_) {
      w_.kernels->scales(a_, from, to, room_.scales.data());
    } else {
      w_.kernels->sums(a_, from, to, room_.row_sums.data() + from, col_sums(unit));
      if (units_per_matrix_ == 1) factors(unit);
    }
    room_.norms[size_t(unit)] = square_sum(from * per_place_, to * per_place_);
  }

  bool is_cut() const { return !small_ && units_per_matrix_ > 1; }

  // Of a matrix of several units, all of which have been summed.
  void factors(int64_t matrix) {
    double* const sums = col_sums(matrix * units_per_matrix_);
    for (int64_t k = 1; k < units_per_matrix_; ++k) {
      const double* const more = col_sums(matrix * units_per_matrix_ + k);
      for (int64_t c = 0; c < a_.cols; ++c) sums[c] += more[c];
    }
    w_.kernels->factors(a_, matrix, room_.row_sums.data() + matrix * a_.rows, sums,
                        row_factors(matrix * a_.rows), col_factors(matrix));
  }

  // The parameter's norm gives the size of a step.
  void measured() {
    const double rms = std::sqrt(total()) / std::sqrt(double(a_.count));
    scale_ = rms > w_.least_scale ? rms : w_.least_scale;  // also where it is NaN
  }

  void second(int64_t unit) {
    const auto [from, to] = range(unit);
    room_.norms[size_t(unit)] =
        small_
            ? w_.kernels->squares(a_, from * per_place_, to * per_place_, room_.scales.data())
            : w_.kernels->row_squares(a_, from, to, row_factors(from), col_factors(matrix(unit)));
  }

  void clipped() {
    const double rms = std::sqrt(total()) / (std::sqrt(double(a_.count)) * w_.d);
    a_.step = scale_ * w_.rate / (rms > 1 ? rms : 1);
  }

  void third(int64_t unit) {
    const auto [from, to] = range(unit);
    if (small_) {
      w_.kernels->write(a_, from * per_place_, to * per_place_, room_.scales.data());
    } else {
      w_.kernels->write_rows(a_, from, to, row_factors(from), col_factors(matrix(unit)));
    }
  }

 private:
  template <class T>
  static void grow(std::vector<T>& of, int64_t count) {
    if (int64_t(of.size()) < count) of.resize(size_t(count));
  }
  int64_t matrix(int64_t unit) const { return unit / units_per_matrix_; }
  std::pair<int64_t, int64_t> range(int64_t unit) const {
    if (small_) return {unit * unit_, std::min((unit + 1) * unit_, places_)};
    const int64_t first = matrix(unit) * a_.rows, in = unit % units_per_matrix_ * unit_;
    return {first + in, first + std::min(in + unit_, a_.rows)};
  }
  double* col_sums(int64_t unit) { return room_.col_sums.data() + unit * padded(a_.cols); }
  char* row_factors(int64_t row) { return room_.by_row.data() + row * w_.numbers_bytes; }
  char* col_factors(int64_t matrix) {
    return room_.by_col.data() + matrix * padded(a_.cols) * w_.numbers_bytes;
  }
  double total() const {
    double sum = 0;
    for (int64_t k = 0; k < units_; ++k) sum += room_.norms[size_t(k)];
    return sum;
  }
  double square_sum(int64_t from, int64_t to) const {
    double blocks[64], sum = 0;
    for (int64_t at = from; at < to; at += 64 * kNormBlock) {
      const int64_t count = std::min(to - at, 64 * int64_t(kNormBlock));
      w_.square_sums(a_.param + at * w_.bytes, count, blocks);
      for (int64_t k = 0; k < (count + kNormBlock - 1) / kNormBlock; ++k) sum += blocks[k];
    }
    return sum;
  }

  const Work& w_;
  Adafactor& a_;
  Room& room_;
  bool small_;
  int64_t places_ = 0, unit_, units_, units_per_matrix_ = 1, per_place_;
  double scale_ = 0;
};

void alone(Work* work, Room* room) {
  Sweeps sweeps(work, room);
  const int64_t units = sweeps.units();
  for (int64_t k = 0; k < units; ++k) sweeps.first(k);
  for (int64_t m = 0; sweeps.is_cut() && m < work->a.matrices; ++m) sweeps.factors(m);
  sweeps.measured();
  for (int64_t k = 0; k < units; ++k) sweeps.second(k);
  sweeps.clipped();
  for (int64_t k = 0; k < units; ++k) sweeps.third(k);
}

void together(Work* work, Room* room, int threads) {
  Sweeps sweeps(work, room);
  const auto all = [&](int64_t count, const auto& visit) {
    parallel(int(std::min<int64_t>(threads, count)), [&](int64_t rank, int64_t size) {
      for (int64_t k = count * rank / size; k < count * (rank + 1) / size; ++k) visit(k);
    });
  };
  all(sweeps.units(), [&](int64_t k) { sweeps.first(k); });
  if (sweeps.is_cut()) all(work->a.matrices, [&](int64_t m) { sweeps.factors(m); });
  sweeps.measured();
  all(sweeps.units(), [&](int64_t k) { sweeps.second(k); });
  sweeps.clipped();
  all(sweeps.units(), [&](int64_t k) { sweeps.third(k); });
}

void run(std::vector<Work>& works, int threads) {
  std::vector<Work*> few;
  std::vector<int64_t> ends;
  int64_t total = 0, all = 0;
  for (const Work& work : works) all += work.a.count;
  const int64_t alone_up_to = threads > 1 ? std::max(kAlone, all / (kParts * threads)) : all;
  for (Work& work : works) {
    if (work.a.count > alone_up_to) continue;
    few.push_back(&work);
    ends.push_back(total += work.a.count);
  }
  // Each thread the parameters whose middle lies in its share of all numbers.
  parallel(useful_threads(total, threads), [&](int64_t rank, int64_t size) {
    Room room;
    for (size_t i = 0; i < few.size(); ++i) {
      const int64_t middle = ends[i] - few[i]->a.count / 2;
      if (std::min<int64_t>(middle * size / std::max<int64_t>(total, 1), size - 1) == rank) {
        alone(few[i], &room);
      }
    }
  });
  Room room;
  for (Work& work : works) {
    if (work.a.count > alone_up_to) together(&work, &room, threads);
  }
}

bool is_run(const View& view) { return view.numel == 0 || contiguous(view); }

std::string shape_error(const char* name, const View& view, const std::string& expected) {
  return std::string("its state '") + name + "' has shape " + describe_shape(view) + " and dtype " +
         dtype_name(view) + "; it must be " + expected +
         ", contiguous and of the parameter's dtype";
}

// Reads a tensor beside a parameter; what is wrong with it is told with its name.
View beside(PyObject* tensor, const char* what) {
  View view;
  try {
    read(tensor, &view);
  } catch (const Refused& refused) {
    throw Refused(std::string(what) + " " + refused.what());
  }
  return view;
}

void check_state(const View& view, const char* name, const View& p, int shortened) {
  bool fits = view.dtype == p.dtype && !view.complex && view.ndim == p.ndim && is_run(view);
  for (int k = 0; fits && k < p.ndim; ++k) {
    fits = view.shape[k] == (k == shortened ? 1 : p.shape[k]);
  }
  if (fits) return;
  std::string expected = "(";
  for (int k = 0; k < p.ndim; ++k) {
    expected += (k ? ", " : "") + std::to_string(k == shortened ? 1 : p.shape[k]);
  }
  throw Refused(shape_error(name, view, expected + (p.ndim == 1 ? ",)" : ")")));
}

}  // namespace

py::object adafactor(const py::list& params, const py::list& grads, const py::list& rows,
                     const py::list& cols, const py::list& steps,
                     const std::vector<AdafactorGroup>& groups, const std::vector<int>& group_of,
                     const py::object& first, int threads) {
  const size_t count = params.size();
  if (grads.size() != count || rows.size() != count || cols.size() != count ||
      steps.size() != count || group_of.size() != count) {
    throw std::invalid_argument("adafactor() takes lists of one length");
  }
  const Kernels& table = kernels();
  std::vector<Work> works;
  std::vector<View> counts;
  std::vector<Extent> written, read_only;
  py::list changed;
  size_t i = 0;
  try {
    for (; i < count; ++i) {
      const auto add = [&](const View& view, std::vector<Extent>& to) {
        if (view.numel) to.push_back(extent(view));
      };
      const bool factored = !cols[i].is_none();
      const View p = beside(params[i].ptr(), "the parameter");
      const View g = beside(grads[i].ptr(), "its gradient");
      if (p.complex || !is_run(p) || !same_shape(g, p) || g.dtype != p.dtype || g.complex ||
          !is_run(g) || factored != (p.ndim > 1)) {
        throw Refused("its gradient has shape " + describe_shape(g) + " and dtype " +
                      dtype_name(g) + ", the parameter " + describe_shape(p) + " and " +
                      dtype_name(p));
      }
      const View row = beside(rows[i].ptr(), "its state");
      check_state(row, factored ? "row_var" : "variance", p, factored ? p.ndim - 1 : -1);
      View col = row;
      if (factored) {
        col = beside(cols[i].ptr(), "its state");
        check_state(col, "col_var", p, p.ndim - 2);
        add(col, written);
        changed.append(cols[i]);
      }
      const View step = beside(steps[i].ptr(), "its state 'step'");
      if (!one_number(step)) throw Refused("its state 'step' " + not_one_number(step));
      add(p, written);
      add(row, written);
      add(step, written);
      add(g, read_only);
      changed.append(params[i]);
      changed.append(rows[i]);
      changed.append(steps[i]);
      counts.push_back(step);
      Work& work = works.emplace_back();
      work.kernels = &table.adafactor[int(p.dtype)];
      work.square_sums = table.square_sums[int(p.dtype)];
      work.bytes = kElementBytes[int(p.dtype)];
      work.numbers_bytes = p.dtype == Dtype::float64 ? 8 : 4;
      work.a = {};
      work.a.param = p.data;
      work.a.grad = g.data;
      work.a.row = row.data;
      work.a.col = factored ? col.data : nullptr;
      work.a.count = p.numel;
      work.a.rows = factored ? p.shape[p.ndim - 2] : 1;
      work.a.cols = factored ? p.shape[p.ndim - 1] : 1;
      work.a.matrices = p.numel ? p.numel / (work.a.rows * work.a.cols) : 0;
      const auto& [lr, beta2_decay, eps1, eps2, d, weight_decay, maximize] =
          groups.at(size_t(group_of[i]));
      work.a.eps = eps1;
      work.a.decay = 1 - lr * weight_decay;
      work.d = d;
      work.least_scale = eps2;
      work.rate = maximize ? lr : -lr;
      work.a.weight = beta2_decay;  // to the power of which the count goes
    }
  } catch (const Refused& refused) {
    return py::make_tuple(i, refused.what());
  }
  if (overlap(written, read_only)) return py::bool_(false);
  if (!first.is_none()) first();
  if (!works.empty()) increment_versions(changed);
  for (size_t k = 0; k < works.size(); ++k) {
    Work& work = works[k];
    const View& step = counts[k];
    Carried number = load(step.data, step.dtype == Dtype::float64);
    number.value += 1;
    store(number, step.data);
    number = load(step.data, number.wide);
    work.a.weight = std::pow(number.value, work.a.weight);
    const double most = 1 / std::sqrt(number.value);
    const double size = std::fabs(work.rate);
    work.rate = std::copysign(most < size ? most : size, work.rate);
  }
  works.erase(std::remove_if(works.begin(), works.end(),
                             [](const Work& work) { return work.a.count == 0; }),
              works.end());
  py::gil_scoped_release unlocked;
  run(works, threads);
  return py::bool_(true);
}

}  // namespace fastopt
