// Adding a parameter, then updating all: the parallel region, one share of it; statistics.
#include "batch.h"

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
// Runs handed to a kernel at a time: 3 KB of stack, and setting up is amortised long before.
constexpr int64_t kRunsPerCall = 64;
// Of all streams, a thread: what is measured before it is updated, so that the update finds it in
// the cache. LAMB over 100 tensors of 256x256 took 1.82 times AdamW's step with everything measured
// first, 1.56 with 256 KB, 1.52, 1.46, 1.42, 1.64 with 512 KB, 1, 2, 4 MB (two cores of a Xeon with
// 2 MB of L2 each); of these that others' caches have too.
constexpr int64_t kCachedBytes = 1 << 20;

}  // namespace

int useful_threads(int64_t count, int threads) {
  return int(std::min<int64_t>(threads, std::max<int64_t>(1, count / kMinShare)));
}

void Batch::clear() {
  entries_.clear();
  compacts_.clear();
  groups_.clear();
  advanced_.clear();
  sums_.clear();
  norms_.clear();
  completed_.clear();
  needs_norm_ = skips_nonfinite_ = tracks_stats_ = begins_ = waits_ = false;
  layouts_.clear();
  last_group_ = -1;
  kernels_ = &kernels();
}

void Batch::set_group(const Group& group) {
  Shared& shared = groups_.emplace_back();
  const Passes& passes = shared.passes = group.passes;
  shared.rule = group.rule;
  shared.variant = group.hyper.variant;
  shared.numbers = group.tensors - group.streams;
  std::copy_n(group.hyper.values, kMaxHyper, shared.hyper.begin());
  skips_nonfinite_ |= passes.skip_nonfinite;
  needs_norm_ |= passes.clip_norm || passes.skip_nonfinite;
  tracks_stats_ |= passes.track_stats;
  waits_ |= kernels_->rules[group.rule].measured != nullptr;
}

int Batch::advance(int group, const Carried* carried, bool first) {
  const Shared& of = groups_[size_t(group)];
  if (group != last_group_ || first != last_first_ ||
      !std::equal(carried, carried + of.numbers, last_carried_.begin())) {
    std::copy_n(carried, of.numbers, last_carried_.begin());
    last_group_ = group;
    last_first_ = first;
    Advanced& next = advanced_.emplace_back();
    std::copy_n(carried, of.numbers, next.carried.begin());
    kernels_->rules[of.rule].scalars(of.hyper.data(), next.carried.data(), first,
                                     next.scalars.data());
  }
  return int(advanced_.size()) - 1;
}

// With the numbers that somebody else's update has left.
void Batch::reread(Entry& entry) {
  Carried carried[kMaxCarried];
  for (int k = 0; k < groups_[size_t(entry.group)].numbers; ++k) {
    carried[k] = load(entry.numbers[k], advanced_[size_t(entry.advanced)].carried[k].wide);
  }
  entry.advanced = advance(entry.group, carried, entry.first);
}

void Batch::reread() {
  for (Entry& entry : entries_) reread(entry);
}

void Batch::write_numbers(const Entry& entry) const {
  const auto& carried = advanced_[size_t(entry.advanced)].carried;
  const int count = groups_[size_t(entry.group)].numbers;
  for (int k = 0; k < count; ++k) store(carried[k], entry.numbers[k]);
}

void Batch::add(const Member& member) {
  const Shared& group = groups_[size_t(member.group)];
  const Passes& passes = group.passes;
  const int streams = member.of->streams;
  const View& p = member.views[0];
  if (!p.device.on_cpu()) throw Refused("it is not on the CPU");
  Carried carried[kMaxCarried];
  for (int k = 0; k < group.numbers; ++k) {
    const View& number = member.number(k);
    if (!number.device.on_cpu()) {
      throw Refused(std::string("its state '") + state_key(*member.of, streams + k) +
                    "' is not on the CPU");
    }
    carried[k] = load(number.data, number.dtype == Dtype::float64);
  }
  Entry& entry = entries_.emplace_back();
  bool alike = true, wide = false;
  for (int s = 0; s < streams; ++s) {
    const Dtype dtype = entry.dtypes[s] = member.views[s].dtype;
    entry.run.streams[s] = member.views[s].data;
    alike &= dtype == p.dtype;
    wide |= dtype == Dtype::float64;
  }
  const auto kernel = [&](Sweep sweep) {
    return alike ? kernels_->update[int(sweep)][group.rule][group.variant][int(p.dtype)]
                 : kernels_->mixed[int(sweep)][group.rule][group.variant][wide];
  };
  entry.kernel = kernel(alike ? passes.sweep() : Sweep::passes);
  entry.measure = kernel(Sweep::measure);
  entry.run.count = p.numel * (p.complex ? 2 : 1);
  entry.run.sums = nullptr;
  entry.layout = member.flat ? -1 : add_layout(member.views, streams);
  entry.stream_count = streams;
  entry.group = member.group;
  entry.index = member.index;
  entry.team = member.shard.team;
  entry.first = member.first;
  entry.compact = member.compact ? add_compact(member) : -1;
  entry.begins = member.begins && passes.average && !member.compact;
  begins_ |= entry.begins;
  for (int k = 0; k < group.numbers; ++k) entry.numbers[k] = member.number(k).data;
  entry.advanced = advance(entry.group, carried, member.first);
  entry.completed = -1;
  const auto room = [&](std::vector<double>& sums, bool needed, int each) -> int64_t {
    if (!needed || p.numel == 0) return -1;
    const int64_t first = int64_t(sums.size());
    sums.resize(sums.size() + (entry.run.count + kSumGrain - 1) / kSumGrain * each);
    return first;
  };
  entry.first_sum = room(sums_, passes.track_stats, kSums);
  entry.first_norm = room(norms_, kernels_->rules[group.rule].measured, kMeasures);
}

const double* Batch::scalars(const Entry& entry) const {
  return entry.completed < 0 ? advanced_[size_t(entry.advanced)].scalars.data()
                             : completed_[size_t(entry.completed)].data();
}

Batch::TensorSums Batch::sums_of(const Entry& entry) const {
  TensorSums found{entry.index, {}};
  if (entry.first_norm < 0) return found;
  const double* at = norms_.data() + entry.first_norm;
  for (int64_t i = 0; i < entry.run.count; i += kSumGrain) {
    for (int k = 0; k < kMeasures; k += 2) {
      TwoSum<double> sum{found.sums[k], found.sums[k + 1]};
      sum.add(*at++);
      found.sums[k] = sum.high;
      found.sums[k + 1] = sum.low + *at++;
    }
  }
  return found;
}

// The scalars of an entry, by its norms.
void Batch::complete(Entry& entry, const TensorSums& found) {
  double norms[kNorms];
  for (int k = 0; k < kNorms; ++k) {
    const double high = found.sums[2 * k], low = found.sums[2 * k + 1];
    norms[k] = std::sqrt(low - low == 0 ? high + low : high);  // of what is infinite, NaN is lost
  }
  auto& scalars = completed_.emplace_back(advanced_[size_t(entry.advanced)].scalars);
  kernels_->rules[groups_[size_t(entry.group)].rule].measured(norms[kNormWeightSquares],
                                                              norms[kNormSquares], scalars.data());
  entry.completed = int(completed_.size()) - 1;
}

// What the rules of the entries [from, to) wait for.
void Batch::measure_tensors(size_t from, size_t to, int threads, const Agree& agree) {
  if (!waits_) return;
  go_over(from, to, threads, Sweep::measure);
  tensor_sums_.clear();
  for (size_t i = from; i < to; ++i) tensor_sums_.push_back(sums_of(entries_[i]));
  if (agree) agree(tensor_sums_);
  for (size_t i = from; i < to; ++i) complete(entries_[i], tensor_sums_[i - from]);
}

// Up to which entry the cache still holds at its update what was measured, `from` on.
size_t Batch::cached_from(size_t from, int threads) const {
  size_t to = from;
  for (int64_t bytes = 0; to < entries_.size() && bytes < threads * kCachedBytes; ++to) {
    const Entry& entry = entries_[to];
    for (int k = 0; k < entry.stream_count; ++k) bytes += entry.run.count * entry.bytes(k);
  }
  return to;
}

void Batch::run(int threads, bool share_memory, const Agree& agree) {
  ends_.clear();
  int64_t total = 0;
  for (const Entry& entry : entries_) ends_.push_back(total += entry.run.count);
  if (!share_memory) {
    // Once even where there is no entry: the other processes wait for this one to agree.
    size_t from = 0, to;
    do {
      to = waits_ && !agree ? cached_from(from, threads) : entries_.size();
      measure_tensors(from, to, threads, agree);
      for (size_t i = from; i < to; ++i) write_numbers(entries_[i]);
      go_over(from, to, threads, Sweep::passes);
    } while ((from = to) < entries_.size());
    return begin_averages();
  }
  // As torch's loop does: one parameter after the other, each with the numbers that the one before
  // has left. Gradients are cleared at the end: another parameter may yet read them.
  std::vector<char> clears;
  for (Shared& group : groups_) clears.push_back(std::exchange(group.passes.clear_grads, false));
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    reread(entry);
    measure_tensors(i, i + 1, threads, agree);
    write_numbers(entry);
    go_over(i, i + 1, threads, Sweep::passes);
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

// The elements of the entries [from, to), in equal shares.
void Batch::go_over(size_t from, size_t to, int threads, Sweep sweep) {
  const int64_t begin = from ? ends_[from - 1] : 0, count = (to ? ends_[to - 1] : 0) - begin;
  parallel(useful_threads(count, threads), [&](int64_t rank, int64_t size) {
    share(begin + count * rank / size, begin + count * (rank + 1) / size, sweep);
  });
}

// The elements [from, to) of the batch, whatever tensors they are in. A share's ends are rounded
// within their tensor, and both neighbours round alike.
void Batch::share(int64_t from, int64_t to, Sweep sweep) {
  const bool measures = sweep == Sweep::measure;
  // Runs with one kernel and one set of scalars go into one call.
  Run runs[kRunsPerCall];
  int64_t pending = 0;
  const Entry* of = nullptr;
  const auto flush = [&] {
    if (pending) {
      (measures ? of->measure : of->kernel)(runs, pending, scalars(*of), groups_[of->group].passes);
    }
    pending = 0;
  };
  size_t i = std::upper_bound(ends_.begin(), ends_.end(), from) - ends_.begin();
  for (; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const int64_t start = ends_[i] - entry.run.count;
    if (start >= to) break;
    const int64_t first = measures ? entry.first_norm : entry.first_sum;
    if (measures && first < 0) continue;
    const bool sums_up = first >= 0;
    double* const all = sums_up ? (measures ? norms_ : sums_).data() + first : nullptr;
    const int64_t grain = sums_up ? kSumGrain : kShareGrain;
    const auto rounded = [&](int64_t offset) {
      return std::min(entry.run.count, (offset + grain - 1) / grain * grain);
    };
    const int64_t end = to < ends_[i] ? rounded(to - start) : entry.run.count;
    const int64_t piece = sums_up ? kSumGrain : entry.run.count;
    for (int64_t begin = from > start ? rounded(from - start) : 0; begin < end; begin += piece) {
      const int64_t stop = std::min(begin + piece, end);
      double* const sums =
          sums_up ? all + begin / kSumGrain * (measures ? kMeasures : kSums) : nullptr;
      if (entry.compact >= 0) {
        flush();
        update_compact(entry, sweep, begin, stop, sums);
        continue;
      }
      if (entry.layout >= 0) {
        flush();
        update_strided(entry, sweep, begin, stop, sums);
        continue;
      }
      if (pending == kRunsPerCall ||
          (pending && (entry.kernel != of->kernel || scalars(entry) != scalars(*of) ||
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
