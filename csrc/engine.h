// A batch: the tensors of one step, checked as they are added, then updated in one parallel region.
#pragma once

#include <Python.h>

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace fastopt {

// Threads that a step over so many real numbers uses, of the `threads` it may.
int useful_threads(int64_t count, int threads);

// Everything the batch holds is reused from step to step: after the first step nothing allocates.
class Batch {
 public:
  using Scalars = std::array<double, kMaxScalars>;

  void clear();

  // Hyperparameters shared by the parameters added next.
  void set_group(int rule, int variant, const double* hyper, const Passes& passes);

  // One parameter with its gradient and states, the moving average last where there is one; `step`
  // is its 0-d step tensor or null, `index` what stats() calls it. Throws Refused; the batch must
  // then be cleared, and no tensor has been changed.
  void add(int index, PyObject* param, PyObject* grad, PyObject* const* states, PyObject* step,
           bool first);

  // Whether a group clips by norm or skips what is not finite, so that measure() must come first.
  bool needs_norm() const { return needs_norm_; }
  bool skips_nonfinite() const { return skips_nonfinite_; }

  struct Norm {
    double value;
    bool finite;  // false where any gradient has a NaN or an infinity
  };
  // The L2 norm of all gradients together, unscaled; sets what they are clipped by.
  Norm measure(int threads);

  // Gradients that share memory cannot be cleared in the pass: another parameter may yet read
  // them. Where this returns true the caller must clear them all after run().
  bool leaves_clearing();

  // Count the steps and update every parameter. Writes memory; touches no Python object.
  void run(int threads);

  struct Stats {
    int index;
    double grad_norm, update_norm, weight_norm;
  };
  // Of the parameters of the last run() whose group tracks statistics.
  std::vector<Stats> stats() const;

 private:
  struct Entry {
    Kernel kernel;
    Run run;         // all of it, in real numbers
    int64_t layout;  // where its strided layout starts in layouts_, or -1: one contiguous run
    int stream_count;
    Dtype dtype;
    int scalars;
    int passes;
    int index;
    int64_t first_sum;  // in sums_, where statistics are tracked
  };
  struct StepCount {
    void* at;
    bool wide;  // float64
    double value;
  };

  // Memory that reading a tensor touches. The next step, which reads the same tensors in the same
  // order, asks for it a few parameters ahead: after a forward and backward pass none of it is in
  // the caches, and torch's reference counts are atomics that let no two reads overlap.
  struct Footprint {
    const void* object;
    const char* metadata;
    const void* data;
  };

  void remember(PyObject* tensor, const View& view);
  void prefetch(size_t tensors) const;
  int64_t add_layout(const View* views, int count);
  int scalars_for(double step, bool first);
  std::pair<char*, char*> extent_of_grad(const Entry& entry) const;
  bool written_memory_overlaps();
  bool measure_share(int64_t from, int64_t to);
  void share(int64_t from, int64_t to);
  template <class Visit>
  void walk(const Entry& entry, int64_t from, int64_t to, const Visit& visit) const;
  void gather(const Entry& entry, int stream, int64_t from, int64_t to, char* out) const;
  void update_strided(const Entry& entry, int64_t begin, int64_t end, double* sums) const;

  std::vector<Entry> entries_;
  std::vector<StepCount> steps_;
  std::vector<Footprint> footprints_;
  size_t footprint_ = 0;  // of the tensor read next
  std::vector<Scalars> scalars_;
  std::vector<Passes> passes_;
  std::vector<int64_t> layouts_;
  std::vector<int64_t> ends_;        // running total of elements, by entry
  std::vector<int64_t> block_ends_;  // running total of blocks of the norm, by entry
  std::vector<double> square_sums_;  // of each such block
  std::vector<double> sums_;         // of the statistics: kSums for each kSumGrain of an entry
  bool needs_norm_ = false;
  bool skips_nonfinite_ = false;
  std::vector<std::pair<char*, char*>> extents_, last_extents_, sorted_extents_;
  bool overlap_ = false;
  bool overlap_known_ = false;  // for this step

  const Kernels* kernels_ = nullptr;
  int rule_ = 0;
  int variant_ = 0;
  std::array<double, kMaxHyper> hyper_{};
  double scalars_step_ = -1;  // the step and first flag of scalars_.back()
  bool scalars_first_ = false;
};

}  // namespace fastopt
