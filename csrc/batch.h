// A batch: the share of a step that this CPU does: tensors as they are added, then their norm, then
// all of them updated in one parallel region; by rules that wait, a cacheful after the other.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "members.h"

namespace fastopt {

// Threads that a step over so many real numbers uses, of the `threads` it may.
int useful_threads(int64_t count, int threads);

// Everything the batch holds is reused from step to step: after the first step nothing allocates.
class Batch {
 public:
  void clear();

  // What the parameters of the next group share.
  void set_group(const Group& group);

  // A parameter as it was read. Throws Refused where its memory is not the CPU's; the batch must
  // then be cleared. No tensor is changed.
  void add(const Member& member);

  // Whether a group clips by norm or skips what is not finite, so that measure() must come first.
  bool needs_norm() const { return needs_norm_; }
  bool skips_nonfinite() const { return skips_nonfinite_; }
  bool tracks_stats() const { return tracks_stats_; }

  struct Squares {
    std::vector<double> sums;  // of all gradients of a team
    bool finite;               // false where any gradient has a NaN or an infinity
  };
  Squares measure(int threads, int teams);
  // The L2 norm of all gradients together, unscaled; sets what they are clipped by.
  double clip(double square_sum);

  // What parameters carry may have been advanced since they were added.
  void reread();

  // What a rule measures of the tensor of a parameter, in two doubles each: see kNorms.
  struct TensorSums {
    int index;
    std::array<double, kMeasures> sums;
  };
  // Makes of what is here what all processes that hold a part of these tensors have.
  using Agree = std::function<void(std::vector<TensorSums>&)>;

  // Count the steps and update every parameter; where they share memory, one after the other.
  // Writes memory; touches no Python object.
  void run(int threads, bool share_memory, const Agree& agree = {});

  struct Stats {
    int index;
    double grad_norm, update_norm, weight_norm;
  };
  // Of the parameters of the last run() whose group tracks statistics.
  std::vector<Stats> stats() const;

 private:
  struct Shared {  // by the parameters of a group
    int rule, variant;
    int numbers;  // that each carries
    std::array<double, kMaxHyper> hyper;
    Passes passes;
  };
  struct Advanced {  // of what they carry and of their hyperparameters
    std::array<Carried, kMaxCarried> carried;
    std::array<double, kMaxScalars> scalars;
  };
  struct Entry {
    Entry() {}  // add() fills it: zeroing it first took 5 % of SGD over 1000 tensors of 64
    Kernel kernel, measure;
    Run run;         // all of it, in real numbers
    int64_t layout;  // where its strided layout starts in layouts_, or -1: one contiguous run
    int compact;     // its place in compacts_, or -1: every stream is what its dtype says
    int stream_count;
    Dtype dtypes[kMaxStreams];
    int advanced;   // in advanced_
    int completed;  // in completed_, where its rule has measured it, or -1
    int group;
    int index;
    int team;
    bool first, begins;
    char* numbers[kMaxCarried];  // that it carries: where they are
    int64_t first_sum;           // in sums_, where statistics are tracked; or -1
    int64_t first_norm;          // in norms_, where its rule measures; or -1
    int64_t bytes(int stream) const { return kElementBytes[int(dtypes[stream])]; }
  };

  struct Compact {
    CompactKernel kernel, measure;
    CompactRun run;  // all of it
    uint64_t seed;
    Shard shard;
    bool flat;
    View views[kMaxStreams], low;  // where it is not flat
  };

  int add_compact(const Member& member);
  void update_compact(const Entry& entry, Sweep sweep, int64_t begin, int64_t end,
                      double* sums) const;
  int64_t add_layout(const View* views, int count);
  const double* scalars(const Entry& entry) const;
  TensorSums sums_of(const Entry& entry) const;
  void complete(Entry& entry, const TensorSums& found);
  void measure_tensors(size_t from, size_t to, int threads, const Agree& agree);
  size_t cached_from(size_t from, int threads) const;
  int advance(int group, const Carried* carried, bool first);
  void reread(Entry& entry);
  void write_numbers(const Entry& entry) const;
  bool measure_share(int64_t from, int64_t to);
  void go_over(size_t from, size_t to, int threads, Sweep sweep);
  void share(int64_t from, int64_t to, Sweep sweep);
  void clear_gradient(const Entry& entry) const;
  void begin_averages() const;
  void copy_stream(const Entry& entry, int from, int to) const;
  template <class Visit>
  void walk(const Entry& entry, int64_t from, int64_t to, const Visit& visit) const;
  void gather(const Entry& entry, int stream, int64_t from, int64_t to, char* out) const;
  void update_strided(const Entry& entry, Sweep sweep, int64_t begin, int64_t end,
                      double* sums) const;

  std::vector<Entry> entries_;
  std::vector<Compact> compacts_;
  std::vector<Shared> groups_;
  std::vector<Advanced> advanced_;
  std::vector<int64_t> layouts_;
  std::vector<int64_t> ends_;        // running total of elements, by entry
  std::vector<int64_t> block_ends_;  // running total of blocks of the norm, by entry
  std::vector<double> square_sums_;  // of each such block
  std::vector<double> sums_;         // of the statistics: kSums for each kSumGrain of an entry
  std::vector<double> norms_;        // that rules measure: kMeasures for each
  std::vector<TensorSums> tensor_sums_;
  std::vector<std::array<double, kMaxScalars>> completed_;
  bool needs_norm_ = false;
  bool skips_nonfinite_ = false;
  bool tracks_stats_ = false;
  bool begins_ = false;  // an average does
  bool waits_ = false;   // a rule does, for norms

  const Kernels* kernels_ = nullptr;
  int last_group_ = -1;  // what advanced_.back() was made of
  std::array<Carried, kMaxCarried> last_carried_;
  bool last_first_ = false;
};

}  // namespace fastopt
