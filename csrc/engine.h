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
  void set_group(int rule, int variant, const double* hyper, const Prologue& prologue);

  // One parameter with its gradient and states; `step` is its 0-d step tensor or null. Throws
  // Refused; the batch must then be cleared, and no tensor has been changed.
  void add(PyObject* param, PyObject* grad, PyObject* const* states, PyObject* step, bool first);

  bool empty() const { return entries_.empty(); }

  // Count the steps and update every parameter. Writes memory; touches no Python object.
  void run(int threads);

 private:
  struct Entry {
    Kernel kernel;
    Run run;         // all of it, in real numbers
    int64_t layout;  // where its strided layout starts in layouts_, or -1: one contiguous run
    int stream_count;
    int element_bytes;
    int scalars;
    int prologue;
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
  bool written_memory_overlaps();
  void share(int64_t from, int64_t to) const;
  void update_strided(const Entry& entry, int64_t begin, int64_t end) const;

  std::vector<Entry> entries_;
  std::vector<StepCount> steps_;
  std::vector<Footprint> footprints_;
  size_t footprint_ = 0;  // of the tensor read next
  std::vector<Scalars> scalars_;
  std::vector<Prologue> prologues_;
  std::vector<int64_t> layouts_;
  std::vector<int64_t> ends_;  // running total of elements, by entry
  std::vector<std::pair<char*, char*>> extents_, last_extents_, sorted_extents_;
  bool overlap_ = false;

  const Kernels* kernels_ = nullptr;
  int rule_ = 0;
  int variant_ = 0;
  std::array<double, kMaxHyper> hyper_{};
  double scalars_step_ = -1;  // the step and first flag of scalars_.back()
  bool scalars_first_ = false;
};

}  // namespace fastopt
