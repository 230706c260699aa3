// A batch: the tensors of one step, checked as they are added and then against one another, then
// updated in one parallel region.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>
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
  // is its 0-d step tensor or null, `index` what stats() calls it. `first`: its states have never
  // been written; `begins`: nor has its average, which begins as the updated parameter. Runs no
  // Python unless it throws Refused; the batch must then be cleared, and no tensor has been
  // changed.
  void add(int index, PyObject* param, PyObject* grad, PyObject* const* states, PyObject* step,
           bool first, bool begins = false);

  // The last checks, once all are added: may run Python. Throws Refused, with the parameter it is
  // about in *index.
  void settle(int* index);

  // Whether a group clips by norm or skips what is not finite, so that measure() must come first.
  bool needs_norm() const { return needs_norm_; }
  bool skips_nonfinite() const { return skips_nonfinite_; }
  bool tracks_stats() const { return tracks_stats_; }

  struct Norm {
    double value;
    bool finite;  // false where any gradient has a NaN or an infinity
  };
  // The L2 norm of all gradients together, unscaled; sets what they are clipped by.
  Norm measure(int threads);

  // Count the steps and update every parameter. Writes memory; touches no Python object.
  void run(int threads);

  struct Stats {
    int index;
    double grad_norm, update_norm, weight_norm;
  };
  // Of the parameters of the last run() whose group tracks statistics.
  std::vector<Stats> stats() const;

 private:
  struct Group {
    int rule, variant;
    std::array<double, kMaxHyper> hyper;
    Passes passes;
  };
  // A step count that update() advances; none where `at` is null.
  struct StepCount {
    void* at = nullptr;
    bool wide = false;  // float64
    // Counted in its own type, as torch does: float32 stops at 2**24.
    double next() const {
      return wide ? *static_cast<double*>(at) + 1 : double(*static_cast<float*>(at) + 1);
    }
    void write(double value) const {
      if (wide) {
        *static_cast<double*>(at) = value;
      } else {
        *static_cast<float*>(at) = float(value);
      }
    }
  };
  struct Entry {
    Entry() {}  // add() fills it: zeroing it first took 5 % of SGD over 1000 tensors of 64
    Kernel kernel;
    Run run;         // all of it, in real numbers
    int64_t layout;  // where its strided layout starts in layouts_, or -1: one contiguous run
    int stream_count;
    Dtype dtypes[kMaxStreams];
    int scalars;
    int group;
    int index;
    bool first, begins;
    StepCount step;
    int64_t first_sum;  // in sums_, where statistics are tracked
    int64_t bytes(int stream) const { return kElementBytes[int(dtypes[stream])]; }
    // Of its tensors: the streams, then the step.
    int footprints() const { return stream_count + (step.at != nullptr); }
  };

  // Memory that reading a tensor touches, and that the update touches. The next step, which reads
  // the same tensors in the same order, asks for it a few parameters ahead: after a forward and
  // backward pass none of it is in the caches, and torch's reference counts are atomics that let no
  // two reads overlap. While it stays what it was, nothing has come to share memory.
  struct Footprint {
    const void* object;
    const char* metadata;
    char* begin;
    char* end;
  };
  // A tensor that may be a lazy view; asking it runs Python, for which it is held.
  struct Suspect {
    pybind11::object tensor;
    size_t entry;
    int stream;
  };

  std::string subject(const Group& group, int stream) const;
  void remember(PyObject* tensor, const View& view, bool run, bool written);
  void prefetch(size_t tensors) const;
  int64_t add_layout(const View* views, int count);
  int scalars_for(int group, double step, bool first);
  bool shares_memory() const { return written_shared_ || reads_shared_; }
  bool writes(const Entry& entry, int stream) const {
    return stream != 1 || groups_[entry.group].passes.writes_grads();
  }
  template <class Visit>
  void each_footprint(const Visit& visit) const;
  bool reads_written(const Footprint& footprint) const;
  void find_shared_memory();
  void refuse_own_overlap(const Entry& entry, const Footprint* own) const;
  bool interleaved(const Entry& entry, int a, int b) const;
  bool measure_share(int64_t from, int64_t to);
  void update(int64_t from, int64_t to, int threads);
  void share(int64_t from, int64_t to);
  void clear_gradient(const Entry& entry) const;
  void begin_averages() const;
  void copy_stream(const Entry& entry, int from, int to) const;
  template <class Visit>
  void walk(const Entry& entry, int64_t from, int64_t to, const Visit& visit) const;
  void gather(const Entry& entry, int stream, int64_t from, int64_t to, char* out) const;
  void update_strided(const Entry& entry, int64_t begin, int64_t end, double* sums) const;

  std::vector<Entry> entries_;
  std::vector<Footprint> footprints_;
  size_t footprint_ = 0;  // of the tensor read next
  std::vector<Suspect> suspects_;
  std::vector<Group> groups_;
  std::vector<Scalars> scalars_;
  std::vector<int64_t> layouts_;
  std::vector<int64_t> ends_;        // running total of elements, by entry
  std::vector<int64_t> block_ends_;  // running total of blocks of the norm, by entry
  std::vector<double> square_sums_;  // of each such block
  std::vector<double> sums_;         // of the statistics: kSums for each kSumGrain of an entry
  bool needs_norm_ = false;
  bool skips_nonfinite_ = false;
  bool tracks_stats_ = false;
  bool begins_ = false;             // an average does
  std::vector<char> writes_grads_;  // by group, in the last step
  // Found by settle(), and kept while nothing moves.
  size_t settled_ = 0;                            // footprints that it has seen
  bool written_moved_ = false;                    // since then, memory that is written
  std::vector<size_t> moved_;                     // likewise, gradients that are only read
  std::vector<std::pair<char*, char*>> written_;  // sorted; apart unless written_shared_
  bool written_shared_ = false;                   // two written tensors overlap
  bool reads_shared_ = false;  // a gradient that is only read is written as something else

  const Kernels* kernels_ = nullptr;
  int scalars_group_ = -1;  // whose scalars_.back() are, and at what step
  double scalars_step_ = -1;
  bool scalars_first_ = false;
};

}  // namespace fastopt
