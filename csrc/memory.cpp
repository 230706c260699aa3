// The last checks of a batch: memory that a step reaches twice, then tensors that may be lazy
// views.
#include <algorithm>

#include "engine.h"

namespace fastopt {

void Batch::settle(int* index) {
  std::vector<Suspect> suspects;
  suspects.swap(suspects_);
  if (settled_ != footprint_) written_moved_ = true;
  if (written_moved_ || !moved_.empty()) {
    find_shared_memory();
    const Footprint* own = footprints_.data();
    for (const Entry& entry : entries_) {
      if (!shares_memory()) break;
      *index = entry.index;
      refuse_own_overlap(entry, own);
      own += entry.footprints();
    }
    settled_ = footprint_;
    written_moved_ = false;
    moved_.clear();
  }
  for (const Suspect& suspect : suspects) {
    const Entry& entry = entries_[suspect.entry];
    *index = entry.index;
    try {
      refuse_lazy_views(suspect.tensor.ptr());
    } catch (const Refused& refused) {
      throw Refused(subject(groups_[entry.group], suspect.stream) + " " + refused.what());
    }
  }
  *index = -1;
}

// Calls visit(footprint, whether it is written) for every tensor.
template <class Visit>
void Batch::each_footprint(const Visit& visit) const {
  const Footprint* at = footprints_.data();
  for (const Entry& entry : entries_) {
    for (int k = 0; k < entry.footprints(); ++k) visit(*at++, writes(entry, k));
  }
}

// Whether memory that is only read is written as something else, by whichever parameter.
bool Batch::reads_written(const Footprint& f) const {
  const auto behind = std::lower_bound(
      written_.begin(), written_.end(), f.end,
      [](const std::pair<char*, char*>& extent, const char* end) { return extent.first < end; });
  return f.begin != f.end && behind != written_.begin() && (behind - 1)->second > f.begin;
}

// One sort of all that is written, and only where something of it has moved; gradients, which move
// at every backward pass, are looked up in it one by one.
void Batch::find_shared_memory() {
  if (written_moved_) {
    written_.clear();
    each_footprint([&](const Footprint& f, bool written) {
      if (written && f.begin != f.end) written_.emplace_back(f.begin, f.end);
    });
    std::sort(written_.begin(), written_.end());
    written_shared_ = false;
    char* end = nullptr;
    for (const auto& [from, to] : written_) {
      written_shared_ |= from < end;
      end = std::max(end, to);
    }
  }
  if (written_moved_ || reads_shared_) {
    reads_shared_ = false;
    each_footprint(
        [&](const Footprint& f, bool written) { reads_shared_ |= !written && reads_written(f); });
  } else {
    reads_shared_ = std::any_of(moved_.begin(), moved_.end(),
                                [&](size_t i) { return reads_written(footprints_[i]); });
  }
}

// One pass cannot give what torch's operations, one after the other, make of such tensors.
void Batch::refuse_own_overlap(const Entry& entry, const Footprint* own) const {
  for (int b = 1; b < entry.footprints(); ++b) {
    for (int a = 0; a < b; ++a) {
      const bool meet = own[a].begin < own[b].end && own[b].begin < own[a].end;
      if (!meet || own[a].begin == own[a].end || own[b].begin == own[b].end) continue;
      if (!writes(entry, a) && !writes(entry, b)) continue;
      if (b < entry.stream_count && interleaved(entry, a, b)) continue;
      const Group& group = groups_[entry.group];
      throw Refused(subject(group, b) + " shares memory with " +
                    (a == 0 ? "the parameter" : subject(group, a)) + "; clone() one of them first");
    }
  }
}

}  // namespace fastopt
