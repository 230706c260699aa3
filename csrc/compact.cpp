// Parameters with a stream in a compact format: their runs, those of other layouts gathered first.
#include <algorithm>
#include <cstring>

#include "batch.h"

namespace fastopt {
namespace {

// Elements gathered at a time: whole blocks, whose streams all fit in the L1 cache.
constexpr int64_t kGather = 4 * kBlock;
constexpr uint64_t kPerKey = uint64_t(1) << 32;

// Calls visit(address, k) for the k-th of the elements [from, to) in the order of their indices.
template <class Visit>
void each_element(const View& view, int64_t from, int64_t to, const Visit& visit) {
  const int64_t bytes = kElementBytes[int(view.dtype)];
  for (int64_t i = from; i < to; ++i) {
    int64_t rest = i, place = 0;
    for (int d = view.ndim - 1; d >= 0; --d) {
      place += rest % view.shape[d] * view.strides[d];
      rest /= view.shape[d];
    }
    visit(view.data + place * bytes, (i - from) * bytes);
  }
}

void take(const View& view, int64_t from, int64_t to, char* out) {
  const size_t bytes = size_t(kElementBytes[int(view.dtype)]);
  each_element(view, from, to, [&](char* at, int64_t k) { std::memcpy(out + k, at, bytes); });
}

void put(const View& view, int64_t from, int64_t to, const char* in) {
  const size_t bytes = size_t(kElementBytes[int(view.dtype)]);
  each_element(view, from, to, [&](char* at, int64_t k) { std::memcpy(at, in + k, bytes); });
}

}  // namespace

int Batch::add_compact(const Member& member) {
  const Group& group = *member.of;
  Compact& of = compacts_.emplace_back();
  of.kernel = kernels_->compact[int(Sweep::passes)][group.rule][group.hyper.variant];
  of.measure = kernels_->compact[int(Sweep::measure)][group.rule][group.hyper.variant];
  of.seed = group.rounding_seed;
  of.shard = member.shard;
  of.flat = member.flat;
  of.run.count = member.views[0].numel;
  of.run.begins = member.begins && group.passes.average;
  for (int k = 0; k < group.streams; ++k) {
    const bool two = member.has_second(k);
    of.run.streams[k] = {member.views[k].data, two ? member.second_views[k].data : nullptr,
                         member.stored[k]};
    of.views[k] = member.views[k];
  }
  if (member.has_second(0)) of.low = member.second_views[0];
  return int(compacts_.size()) - 1;
}

// Elements [begin, end), whole blocks or up to the last one.
void Batch::update_compact(const Entry& entry, Sweep sweep, int64_t begin, int64_t end,
                           double* sums) const {
  const Compact& of = compacts_[size_t(entry.compact)];
  const Passes& passes = groups_[size_t(entry.group)].passes;
  const auto step = uint64_t(advanced_[size_t(entry.advanced)].carried[0].value);
  alignas(64) char scratch[kMaxStreams][kGather * sizeof(float)], low[kGather * sizeof(int16_t)];
  CompactRun run = of.run;
  run.sums = sums;
  for (int64_t at = begin, stop; at < end; at = stop) {
    const int64_t row = of.shard.run ? at / of.shard.run : 0, column = at - row * of.shard.run;
    run.element = of.shard.first + uint64_t(row * of.shard.stride + column);
    stop = std::min(end, at + int64_t(kPerKey - run.element % kPerKey));
    if (of.shard.run) stop = std::min(stop, at - column + of.shard.run);
    if (!of.flat) stop = std::min(stop, at + kGather);
    run.count = stop - at;
    for (int w = 0; w < kWords; ++w) {
      run.keys[w] = key_of(of.seed, step, uint64_t(entry.index), w, run.element / kPerKey);
    }
    for (int k = 0; k < entry.stream_count; ++k) {
      const CompactStream& whole = of.run.streams[k];
      CompactStream& part = run.streams[k];
      if (whole.second) part.second = whole.second + second_bytes(whole.stored.format, at);
      part.first = of.flat ? whole.first + first_bytes(whole.stored.format, at) : scratch[k];
      if (!of.flat) take(of.views[k], at, stop, scratch[k]);
    }
    const bool gathers_low = !of.flat && run.streams[0].second;
    if (gathers_low) {
      run.streams[0].second = low;
      take(of.low, at, stop, low);
    }
    (sweep == Sweep::measure ? of.measure : of.kernel)(run, scalars(entry), passes);
    if (sweep == Sweep::measure) continue;
    for (int k = 0; !of.flat && k < entry.stream_count; ++k) {
      if (k == 1 && !passes.writes_grads()) continue;  // gradients are only read
      put(of.views[k], at, stop, scratch[k]);
    }
    if (gathers_low) put(of.low, at, stop, low);
  }
}

}  // namespace fastopt
