// Reading a parameter and what is wrong with it; memory that a step reaches twice; lazy views.
#include "members.h"

#include <algorithm>

#include "dispatch.h"

namespace fastopt {
namespace {

// Parameters that memory is asked for ahead of reading them. 1000 tensors of 64, Adam, one thread,
// with cold caches (torch's for-loop runs in between): 1280 us without, 1075 at 1, 707 at 4, 751
// at 8.
constexpr size_t kReadAhead = 4;

// What messages call a parameter's tensor in this place.
std::string subject(const Group& group, int place) {
  if (place < 2) return place == 0 ? "it" : "its gradient";
  return std::string("its state '") + state_key(group, place) + "'";
}

// What is wrong with a tensor that does not fit its parameter.
std::string mismatch(const View& v, const View& param) {
  if (!(v.device == param.device)) {
    return "is on " + describe(v.device) + ", the parameter on " + describe(param.device) +
           "; move it there, as `model.to(device)` before building the optimizer does";
  }
  if (!same_shape(v, param)) {
    return "has shape " + describe_shape(v) + ", the parameter " + describe_shape(param) +
           "; they must be equal";
  }
  return std::string("has dtype ") + dtype_name(v) + ", the parameter " + dtype_name(param) +
         "; both must be real, or both complex";
}

bool writes(const Group& group, int place) { return place != 1 || group.passes.writes_grads(); }

}  // namespace

const char* state_key(const Group& group, int place) {
  const Rule& rule = kernels().rules[group.rule];
  if (place >= group.streams) return rule.carries[place - group.streams].name;
  const bool average = group.passes.average && place == group.streams - 1;
  return average ? kAverageName : rule.states[group.hyper.variant][place - 2].name;
}

void Members::clear() {
  reads_.clear();
  suspects_.clear();
  footprint_ = 0;
}

void Members::remember(PyObject* tensor, const View& view, bool run, bool written) {
  char* const begin = view.data;
  char* const end = run ? begin + view.numel * element_bytes(view) : extent(view).second;
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

void Members::prefetch(size_t tensors) const {
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

void Members::read(Member& member) {
  const Group& group = *member.of;
  const int streams = group.streams;
  const bool writes_grad = writes(group, 1);
  View* const views = member.views;
  int k = 0;
  const auto refuse = [&](const std::string& why) { throw Refused(subject(group, k) + " " + why); };
  const auto look = [&](PyObject* tensor, View* view) {
    try {
      read_anywhere(tensor, view);
    } catch (const Refused& refused) {
      refuse(refused.what());
    }
  };
  const int footprints = group.tensors;
  prefetch(size_t(footprints));
  const size_t place = reads_.size();
  if (place == writes_grads_.size()) writes_grads_.push_back(-1);
  written_moved_ |= writes_grads_[place] != writes_grad;
  writes_grads_[place] = writes_grad;
  reads_.push_back({member.index, member.of, footprint_, footprints});
  member.flat = true;
  for (; k < streams; ++k) {
    PyObject* const tensor = member.tensors[k];
    View& view = views[k];
    look(tensor, &view);
    const bool run = contiguous(view);
    remember(tensor, view, run, writes(group, k));
    member.flat &= run;
    if (!run || view.complex || view.numel == 1) {
      suspects_.push_back({pybind11::reinterpret_borrow<pybind11::object>(tensor), place, k});
    }
    if (!fits(view, views[0])) refuse(mismatch(view, views[0]));
    if (writes(group, k) && overlaps_itself(view)) {
      refuse(
          "is expanded (unsupported operation: more than one element refers to a single memory "
          "location); clone() it first");
    }
  }
  for (; k < footprints; ++k) {
    View& at = views[k];
    look(member.tensors[k], &at);
    remember(member.tensors[k], at, contiguous(at), true);
    if (!one_number(at)) refuse(not_one_number(at));
  }
}

void Members::settle(int* index) {
  std::vector<Suspect> suspects;
  suspects.swap(suspects_);
  if (settled_ != footprint_) written_moved_ = true;
  moved_any_ = written_moved_ || !moved_.empty();
  if (moved_any_) {
    find_shared_memory();
    for (const Read& read : reads_) {
      if (!share_memory()) break;
      *index = read.index;
      refuse_own_overlap(read);
    }
    settled_ = footprint_;
    written_moved_ = false;
    moved_.clear();
  }
  for (const Suspect& suspect : suspects) {
    const Read& read = reads_[suspect.read];
    *index = read.index;
    try {
      refuse_lazy_views(suspect.tensor.ptr());
    } catch (const Refused& refused) {
      throw Refused(subject(*read.of, suspect.stream) + " " + refused.what());
    }
  }
  *index = -1;
}

// Calls visit(footprint, whether it is written) for every tensor.
template <class Visit>
void Members::each_footprint(const Visit& visit) const {
  for (const Read& read : reads_) {
    for (int k = 0; k < read.footprints; ++k) {
      visit(footprints_[read.first + size_t(k)], writes(*read.of, k));
    }
  }
}

// Whether memory that is only read is written as something else, by whichever parameter.
bool Members::reads_written(const Footprint& f) const {
  const auto behind = std::lower_bound(
      written_.begin(), written_.end(), f.end,
      [](const std::pair<char*, char*>& extent, const char* end) { return extent.first < end; });
  return f.begin != f.end && behind != written_.begin() && (behind - 1)->second > f.begin;
}

// One sort of all that is written, and only where something of it has moved; gradients, which move
// at every backward pass, are looked up in it one by one.
void Members::find_shared_memory() {
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
void Members::refuse_own_overlap(const Read& read) const {
  const Footprint* const own = footprints_.data() + read.first;
  for (int b = 1; b < read.footprints; ++b) {
    for (int a = 0; a < b; ++a) {
      if (!own[a].meets(own[b]) || (!writes(*read.of, a) && !writes(*read.of, b))) continue;
      View one, other;
      read_anywhere(own[a].object, &one);
      read_anywhere(own[b].object, &other);
      if (interleaved(one, other)) continue;
      throw Refused(subject(*read.of, b) + " shares memory with " +
                    (a == 0 ? "the parameter" : subject(*read.of, a)) +
                    "; clone() one of them first");
    }
  }
}

bool Members::meet(const Read& a, const Read& b) const {
  for (int i = 0; i < a.footprints; ++i) {
    for (int j = 0; j < b.footprints; ++j) {
      const bool written = writes(*a.of, i) || writes(*b.of, j);
      if (written && footprints_[a.first + size_t(i)].meets(footprints_[b.first + size_t(j)])) {
        return true;
      }
    }
  }
  return false;
}

std::vector<int> Members::layers() const {
  std::vector<int> layers(reads_.size());
  for (size_t i = 0; share_memory() && i < reads_.size(); ++i) {
    for (size_t before = 0; before < i; ++before) {
      if (layers[before] >= layers[i] && meet(reads_[before], reads_[i])) {
        layers[i] = layers[before] + 1;
      }
    }
  }
  return layers;
}

}  // namespace fastopt
