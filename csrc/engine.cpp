// Checking a parameter, the parallel region, one share of it, statistics.
#include "engine.h"

#include <algorithm>
#include <cmath>

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
         "; they must be equal";
}

}  // namespace

int useful_threads(int64_t count, int threads) {
  return int(std::min<int64_t>(threads, std::max<int64_t>(1, count / kMinShare)));
}

void Batch::clear() {
  entries_.clear();
  steps_.clear();
  scalars_.clear();
  passes_.clear();
  sums_.clear();
  needs_norm_ = skips_nonfinite_ = false;
  layouts_.clear();
  extents_.clear();
  overlap_known_ = false;
  footprint_ = 0;
  kernels_ = &kernels();
}

void Batch::set_group(int rule, int variant, const double* hyper, const Passes& passes) {
  rule_ = rule;
  variant_ = variant;
  std::copy_n(hyper, kMaxHyper, hyper_.begin());
  passes_.push_back(passes);
  skips_nonfinite_ |= passes.skip_nonfinite;
  needs_norm_ |= passes.clip_norm || passes.skip_nonfinite;
  scalars_step_ = -1;
}

int Batch::scalars_for(double step, bool first) {
  if (step != scalars_step_ || first != scalars_first_) {
    scalars_.emplace_back();
    kernels_->rules[rule_].scalars(hyper_.data(), step, first, scalars_.back().data());
    scalars_step_ = step;
    scalars_first_ = first;
  }
  return int(scalars_.size()) - 1;
}

void Batch::remember(PyObject* tensor, const View& view) {
  if (footprint_ == footprints_.size()) footprints_.emplace_back();
  footprints_[footprint_++] = {tensor, reinterpret_cast<const char*>(view.shape), view.data};
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
    __builtin_prefetch(f.data, 1);
  }
}

void Batch::add(int index, PyObject* param, PyObject* grad, PyObject* const* states, PyObject* step,
                bool first) {
  const char* const* names = kernels_->rules[rule_].states[variant_];
  const Passes& passes = passes_.back();
  int streams = 2;
  while (names[streams - 2]) ++streams;
  const int ema = streams;
  streams += passes.average;
  View views[kMaxStreams];
  int k = 0;
  const auto refuse = [&](const std::string& why) {
    const std::string name = k < 2 ? "" : k == ema ? kAverageName : names[k - 2];
    throw Refused((k == 0 ? "it " : k == 1 ? "its gradient " : "its state '" + name + "' ") + why);
  };
  bool flat = true;
  prefetch(streams + (step != nullptr));
  for (; k < streams; ++k) {
    PyObject* tensor = k == 0 ? param : k == 1 ? grad : states[k - 2];
    try {
      read(tensor, &views[k]);
      remember(tensor, views[k]);
      const bool run = contiguous(views[k]);
      flat &= run;
      if (!run || views[k].complex || views[k].numel == 1) refuse_lazy_views(tensor);
    } catch (const Refused& refused) {
      refuse(refused.what());
    }
    if (!fits(views[k], views[0])) refuse(mismatch(views[k], views[0]));
    const bool written = k != 1 || passes.writes_grads();
    if (written && overlaps_itself(views[k])) {
      refuse(
          "is expanded (unsupported operation: more than one element refers to a single memory "
          "location); clone() it first");
    }
  }

  double count = 0;
  if (step) {
    View at;
    try {
      read(step, &at);
      remember(step, at);
    } catch (const Refused& refused) {
      throw Refused(std::string("its state 'step' ") + refused.what());
    }
    if (at.numel != 1 || at.complex || kElementBytes[int(at.dtype)] < 4) {
      throw Refused("its state 'step' has shape " + describe_shape(at) + " and dtype " +
                    dtype_name(at) + "; it must be one float32 or float64 number");
    }
    const bool wide = at.dtype == Dtype::float64;
    count = wide ? *reinterpret_cast<double*>(at.data) + 1
                 : double(*reinterpret_cast<float*>(at.data) + 1);
    steps_.push_back({at.data, wide, count});
  }

  const View& p = views[0];
  const int reals = p.complex ? 2 : 1;
  extents_.push_back(extent(p));
  if (passes.writes_grads()) extents_.push_back(extent(views[1]));
  if (p.numel == 0) return;
  Entry& entry = entries_.emplace_back();
  entry.kernel = kernels_->update[passes.more()][rule_][variant_][int(p.dtype)];
  for (int s = 0; s < k; ++s) entry.run.streams[s] = views[s].data;
  entry.run.count = p.numel * reals;
  entry.run.sums = nullptr;
  entry.layout = flat ? -1 : add_layout(views, k);
  entry.stream_count = k;
  entry.dtype = p.dtype;
  entry.scalars = scalars_for(count, first);
  entry.passes = int(passes_.size()) - 1;
  entry.index = index;
  entry.first_sum = -1;
  if (passes.track_stats) {
    entry.first_sum = int64_t(sums_.size());
    sums_.resize(sums_.size() + (entry.run.count + kSumGrain - 1) / kSumGrain * kSums);
  }
}

bool Batch::leaves_clearing() {
  const auto clears = [](const Passes& passes) { return passes.clear_grads; };
  if (std::none_of(passes_.begin(), passes_.end(), clears) || !written_memory_overlaps()) {
    return false;
  }
  for (Passes& passes : passes_) passes.clear_grads = false;
  return true;
}

// Tensors that are written to and share memory (tied parameters, a gradient that two parameters
// have and GradScaler unscales) are updated one after the other, as torch's loop does. Sorting is
// left out while the addresses stay what they were in the last step.
bool Batch::written_memory_overlaps() {
  if (overlap_known_) return overlap_;
  overlap_known_ = true;
  // Where one group writes to its gradients, another may have the same ones to read.
  const auto writes = [](const Passes& passes) { return passes.writes_grads(); };
  if (std::any_of(passes_.begin(), passes_.end(), writes)) {
    for (const Entry& entry : entries_) {
      if (!passes_[entry.passes].writes_grads()) extents_.push_back(extent_of_grad(entry));
    }
  }
  if (extents_ != last_extents_) {
    last_extents_ = extents_;
    sorted_extents_ = extents_;
    std::sort(sorted_extents_.begin(), sorted_extents_.end());
    overlap_ = false;
    char* end = nullptr;
    for (const auto& [from, to] : sorted_extents_) {
      overlap_ |= from < end && from != to;
      end = std::max(end, to);
    }
  }
  return overlap_;
}

void Batch::run(int threads) {
  for (const StepCount& step : steps_) {
    if (step.wide) {
      *static_cast<double*>(step.at) = step.value;
    } else {
      *static_cast<float*>(step.at) = float(step.value);
    }
  }
  ends_.clear();
  int64_t total = 0;
  for (const Entry& entry : entries_) ends_.push_back(total += entry.run.count);
  const int team = written_memory_overlaps() ? 1 : useful_threads(total, threads);
  parallel(team, [&](int64_t rank, int64_t size) {
    share(total * rank / size, total * (rank + 1) / size);
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
      of->kernel(runs, pending, scalars_[of->scalars].data(), passes_[of->passes]);
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
                       entry.passes != of->passes))) {
        flush();
      }
      of = &entry;
      Run& run = runs[pending++];
      for (int k = 0; k < entry.stream_count; ++k) {
        run.streams[k] = entry.run.streams[k] + begin * kElementBytes[int(entry.dtype)];
      }
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
