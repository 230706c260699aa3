// Checking a parameter, then updating all: the parallel region, one share of it; statistics.
#include "engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "dispatch.h"
#include "parallel.h"

namespace fastopt {
namespace {

// Fewer elements than this a thread are not worth waking it for (measured: docs/performance.md).
constexpr int64_t kMinShare = 16384;
// Shares meet at multiples of this many elements, so that no two threads write one cache line.
constexpr int64_t kShareGrain = 64;
// Statistics are summed over so many elements at a time, which no share divides: the same bits for
// any number of threads.
constexpr int64_t kSumGrain = 16384;
// Parameters that memory is asked for ahead of reading them. 1000 tensors of 64, Adam, one thread,
// with cold caches (torch's for-loop runs in between): 1280 us without, 1075 at 1, 707 at 4, 751
// at 8.
constexpr size_t kReadAhead = 4;
// Runs handed to a kernel at a time: 3 KB of stack, and setting up is amortised long before.
constexpr int64_t kRunsPerCall = 64;

// What is wrong with a tensor that does not fit its parameter.
std::string mismatch(const View& v, const View& param) {
  if (!same_shape(v, param)) {
    return "has shape " + describe_shape(v) + ", the parameter " + describe_shape(param) +
           "; they must be equal";
  }
  return std::string("has dtype ") + dtype_name(v) + ", the parameter " + dtype_name(param) +
         "; both must be real, or both complex";
}

}  // namespace

int useful_threads(int64_t count, int threads) {
  return int(std::min<int64_t>(threads, std::max<int64_t>(1, count / kMinShare)));
}

void Batch::clear() {
  entries_.clear();
  suspects_.clear();
  groups_.clear();
  scalars_.clear();
  sums_.clear();
  needs_norm_ = skips_nonfinite_ = tracks_stats_ = begins_ = false;
  layouts_.clear();
  footprint_ = 0;
  scalars_group_ = -1;
  kernels_ = &kernels();
}

void Batch::set_group(int rule, int variant, const double* hyper, const Passes& passes) {
  Group& group = groups_.emplace_back();
  group.rule = rule;
  group.variant = variant;
  std::copy_n(hyper, kMaxHyper, group.hyper.begin());
  group.passes = passes;
  skips_nonfinite_ |= passes.skip_nonfinite;
  needs_norm_ |= passes.clip_norm || passes.skip_nonfinite;
  tracks_stats_ |= passes.track_stats;
  const size_t g = groups_.size() - 1;
  if (g == writes_grads_.size()) writes_grads_.push_back(-1);
  written_moved_ |= writes_grads_[g] != passes.writes_grads();
  writes_grads_[g] = passes.writes_grads();
}

int Batch::scalars_for(int group, double step, bool first) {
  if (group != scalars_group_ || step != scalars_step_ || first != scalars_first_) {
    const Group& of = groups_[group];
    scalars_.emplace_back();
    kernels_->rules[of.rule].scalars(of.hyper.data(), step, first, scalars_.back().data());
    scalars_group_ = group;
    scalars_step_ = step;
    scalars_first_ = first;
  }
  return int(scalars_.size()) - 1;
}

// What messages call the stream-th tensor of a parameter.
std::string Batch::subject(const Group& group, int stream) const {
  if (stream < 2) return stream == 0 ? "it" : "its gradient";
  const Rule::State* states = kernels_->rules[group.rule].states[group.variant];
  const int average = 2 + length(states);
  const char* name = stream < average                            ? states[stream - 2].name
                     : stream == average && group.passes.average ? kAverageName
                                                                 : "step";
  return std::string("its state '") + name + "'";
}

void Batch::remember(PyObject* tensor, const View& view, bool run, bool written) {
  const int element = kElementBytes[int(view.dtype)] * (view.complex ? 2 : 1);
  char* const begin = view.data;
  char* const end = run ? begin + view.numel * element : extent(view).second;
  const size_t place = footprint_++;
  if (place == footprints_.size()) footprints_.emplace_back();
  Footprint& f = footprints_[place];
  const auto* const metadata = reinterpret_cast<const char*>(view.shape);
  if (f.begin != begin || f.end != end) {
    if (written) {
      written_moved_ = true;
    } else {
      moved_.push_back(place);
    }
  } else if (f.object == tensor && f.metadata == metadata) {
    return;  // as in the last step: these caches stay clean
  }
  f = {tensor, metadata, begin, end};
}

void Batch::prefetch(size_t tensors) const {
  const size_t begin = footprint_ + kReadAhead * tensors;
  const size_t end = std::min(begin + tensors, footprints_.size());
  for (size_t i = begin; i < end; ++i) {
    const Footprint& f = footprints_[i];
    __builtin_prefetch(f.object);
    // The shape lies within torch's 200 bytes of metadata; a prefetch of a stale address is
    // harmless.
    for (int line = -2; line <= 1; ++line) __builtin_prefetch(f.metadata + line * 64);
    __builtin_prefetch(f.begin, 1);
  }
}

void Batch::add(int index, PyObject* param, PyObject* grad, PyObject* const* states, PyObject* step,
                bool first, bool begins) {
  const Group& group = groups_.back();
  const Passes& passes = group.passes;
  const int streams =
      2 + length(kernels_->rules[group.rule].states[group.variant]) + passes.average;
  View views[kMaxStreams];
  int k = 0;
  const auto refuse = [&](const std::string& why) { throw Refused(subject(group, k) + " " + why); };
  bool flat = true, alike = true, wide = false;
  prefetch(streams + (step != nullptr));
  for (; k < streams; ++k) {
    PyObject* tensor = k == 0 ? param : k == 1 ? grad : states[k - 2];
    const bool written = k != 1 || passes.writes_grads();
    try {
      read(tensor, &views[k]);
    } catch (const Refused& refused) {
      refuse(refused.what());
    }
    const bool run = contiguous(views[k]);
    remember(tensor, views[k], run, written);
    flat &= run;
    alike &= views[k].dtype == views[0].dtype;
    wide |= views[k].dtype == Dtype::float64;
    if (!run || views[k].complex || views[k].numel == 1) {
      suspects_.push_back(
          {pybind11::reinterpret_borrow<pybind11::object>(tensor), entries_.size(), k});
    }
    if (!fits(views[k], views[0])) refuse(mismatch(views[k], views[0]));
    if (written && overlaps_itself(views[k])) {
      refuse(
          "is expanded (unsupported operation: more than one element refers to a single memory "
          "location); clone() it first");
    }
  }

  StepCount count;
  if (step) {
    View at;
    try {
      read(step, &at);
    } catch (const Refused& refused) {
      refuse(refused.what());
    }
    remember(step, at, contiguous(at), true);
    if (at.numel != 1 || at.complex || kElementBytes[int(at.dtype)] < 4) {
      refuse("has shape " + describe_shape(at) + " and dtype " + dtype_name(at) +
             "; it must be one float32 or float64 number");
    }
    count = {at.data, at.dtype == Dtype::float64};
  }

  const View& p = views[0];
  const int reals = p.complex ? 2 : 1;
  Entry& entry = entries_.emplace_back();
  entry.kernel = alike ? kernels_->update[passes.more()][group.rule][group.variant][int(p.dtype)]
                       : kernels_->mixed[group.rule][group.variant][wide];
  for (int s = 0; s < streams; ++s) {
    entry.run.streams[s] = views[s].data;
    entry.dtypes[s] = views[s].dtype;
  }
  entry.run.count = p.numel * reals;
  entry.run.sums = nullptr;
  entry.layout = flat ? -1 : add_layout(views, streams);
  entry.stream_count = streams;
  entry.group = int(groups_.size()) - 1;
  entry.index = index;
  entry.first = first;
  entry.begins = begins && passes.average;
  begins_ |= entry.begins;
  entry.step = count;
  entry.scalars = scalars_for(entry.group, step ? count.next() : 0, first);
  entry.first_sum = -1;
  if (passes.track_stats && p.numel != 0) {
    entry.first_sum = int64_t(sums_.size());
    sums_.resize(sums_.size() + (entry.run.count + kSumGrain - 1) / kSumGrain * kSums);
  }
}

void Batch::run(int threads) {
  ends_.clear();
  int64_t total = 0;
  for (const Entry& entry : entries_) {
    ends_.push_back(total += entry.run.count);
    if (entry.step.at && !shares_memory()) entry.step.write(entry.step.next());
  }
  if (!shares_memory()) {
    update(0, total, threads);
    return begin_averages();
  }
  // As torch's loop does: one parameter after the other, each with the step count that the one
  // before has left. Gradients are cleared at the end: another parameter may yet read them.
  std::vector<char> clears;
  for (Group& group : groups_) clears.push_back(std::exchange(group.passes.clear_grads, false));
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.step.at) {
      entry.scalars = scalars_for(entry.group, entry.step.next(), entry.first);
      entry.step.write(entry.step.next());
    }
    update(ends_[i] - entry.run.count, ends_[i], threads);
  }
  begin_averages();
  for (const Entry& entry : entries_) {
    if (clears[size_t(entry.group)]) clear_gradient(entry);
  }
}

void Batch::begin_averages() const {
  if (!begins_) return;
  for (const Entry& entry : entries_) {
    if (entry.begins) copy_stream(entry, 0, entry.stream_count - 1);
  }
}

// The elements [from, to) of the batch, in equal shares.
void Batch::update(int64_t from, int64_t to, int threads) {
  parallel(useful_threads(to - from, threads), [&](int64_t rank, int64_t size) {
    share(from + (to - from) * rank / size, from + (to - from) * (rank + 1) / size);
  });
}

// The elements [from, to) of the batch, whatever tensors they are in. A share's ends are rounded
// within their tensor, and both neighbours round alike.
void Batch::share(int64_t from, int64_t to) {
  // Runs with one kernel and one set of scalars go into one call.
  Run runs[kRunsPerCall];
  int64_t pending = 0;
  const Entry* of = nullptr;
  const auto flush = [&] {
    if (pending) {
      of->kernel(runs, pending, scalars_[of->scalars].data(), groups_[of->group].passes);
    }
    pending = 0;
  };
  size_t i = std::upper_bound(ends_.begin(), ends_.end(), from) - ends_.begin();
  for (; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const int64_t start = ends_[i] - entry.run.count;
    if (start >= to) break;
    const bool track = entry.first_sum >= 0;
    const int64_t grain = track ? kSumGrain : kShareGrain;
    const auto rounded = [&](int64_t offset) {
      return std::min(entry.run.count, (offset + grain - 1) / grain * grain);
    };
    const int64_t end = to < ends_[i] ? rounded(to - start) : entry.run.count;
    const int64_t piece = track ? kSumGrain : entry.run.count;
    for (int64_t begin = from > start ? rounded(from - start) : 0; begin < end; begin += piece) {
      const int64_t stop = std::min(begin + piece, end);
      double* const sums =
          track ? sums_.data() + entry.first_sum + begin / kSumGrain * kSums : nullptr;
      if (entry.layout >= 0) {
        flush();
        update_strided(entry, begin, stop, sums);
        continue;
      }
      if (pending == kRunsPerCall ||
          (pending && (entry.kernel != of->kernel || entry.scalars != of->scalars ||
                       entry.group != of->group))) {
        flush();
      }
      of = &entry;
      Run& run = runs[pending++];
      for (int k = 0; k < entry.stream_count; ++k) {
        run.streams[k] = entry.run.streams[k] + begin * entry.bytes(k);
      }
      run.dtypes = entry.dtypes;
      run.count = stop - begin;
      run.sums = sums;
    }
  }
  flush();
}

std::vector<Batch::Stats> Batch::stats() const {
  std::vector<Stats> list;
  for (const Entry& entry : entries_) {
    if (entry.first_sum < 0) continue;
    double sum[kSums] = {};
    const double* at = sums_.data() + entry.first_sum;
    for (int64_t i = 0; i < entry.run.count; i += kSumGrain) {
      for (double& of : sum) of += *at++;
    }
    list.push_back({entry.index, std::sqrt(sum[kGradSquares]), std::sqrt(sum[kUpdateSquares]),
                    std::sqrt(sum[kWeightSquares])});
  }
  return list;
}

}  // namespace fastopt
