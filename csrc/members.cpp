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

const Rule::State* states_of(const Group& group) {
  return kernels().rules[group.rule].states[group.hyper.variant];
}

std::string second_subject(const Group& group, int stream) {
  const std::string name =
      stream == 0 ? kLowName : std::string(states_of(group)[stream - 2].name) + kScaleSuffix;
  return "its state '" + name + "'";
}

// What messages call a parameter's tensor in this place; `seconds` as in Member.
std::string subject(const Group& group, int place, unsigned seconds) {
  if (place < 2) return place == 0 ? "it" : "its gradient";
  const bool codes = place < group.streams && seconds >> place & 1;
  return std::string("its state '") + state_key(group, place) + (codes ? kCodesSuffix : "") + "'";
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
  if (place >= group.streams) return group.carries[place - group.streams].name;
  const bool average = group.passes.average && place == group.streams - 1;
  return average ? kAverageName : states_of(group)[place - 2].name;
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
  const auto refuse = [&](const std::string& why) {
    throw Refused(subject(group, k, member.seconds) + " " + why);
  };
  const auto look = [&](PyObject* tensor, View* view) {
    try {
      read_anywhere(tensor, view, k >= 2 && k < streams && member.has_second(k));
    } catch (const Refused& refused) {
      refuse(refused.what());
    }
  };
  const int footprints = group.tensors + __builtin_popcount(member.seconds);
  prefetch(size_t(footprints));
  const size_t place = reads_.size();
  if (place == writes_grads_.size()) writes_grads_.push_back(-1);
  written_moved_ |= writes_grads_[place] != writes_grad;
  writes_grads_[place] = writes_grad;
  reads_.push_back({member.index, member.of, footprint_, footprints, member.seconds});
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
  member.compact = member.seconds || group.compact;
  if (member.compact) read_formats(member);
  for (; k < group.tensors; ++k) {
    View& at = views[k];
    look(member.tensors[k], &at);
    remember(member.tensors[k], at, contiguous(at), true);
    if (!one_number(at)) refuse(not_one_number(at));
  }
}

// Second planes, then what format each stream is in. Structure tells: codes are bytes that have a
// scale, a corrected parameter has a correction, whose width is its dtype's. Only of a 16-bit one
// alone it does not, which a group may ask to round by noise. A moving average of 16 bits always
// is, by a word of its own: to nearest it would not move at a decay of 0.999.
void Members::read_formats(Member& member) {
  const Group& group = *member.of;
  const View& p = member.views[0];
  const int average = 2 + length(states_of(group));
  if (!group.compact) throw Changed("its group no longer asks for compact formats");
  bool compact = false;
  for (int k = 0; k < kMaxStreams; ++k) {
    if (!member.has_second(k)) continue;
    View& view = member.second_views[k];
    const auto refuse = [&](const std::string& why) {
      throw Refused(second_subject(group, k) + " " + why);
    };
    try {
      read_anywhere(member.second[k], &view, true);
    } catch (const Refused& refused) {
      refuse(refused.what());
    }
    const bool run = contiguous(view);
    remember(member.second[k], view, run, true);
    if (!(view.device == p.device)) refuse(mismatch(view, p));
    if (k == 0) {
      if (p.dtype != Dtype::bfloat16 && p.dtype != Dtype::float16) {
        refuse(std::string("is the correction of a 16-bit parameter, but this one is ") +
               dtype_name(p));
      }
      if (view.dtype != Dtype::int16 && view.dtype != Dtype::int8) {
        refuse(std::string("has dtype ") + dtype_name(view) + "; it must be int16 or int8");
      }
      if (!same_shape(view, p)) refuse(mismatch(view, p));
      if (overlaps_itself(view)) refuse("is expanded; clone() it first");
      member.flat &= run;
      continue;
    }
    const int64_t blocks = (p.numel + kBlock - 1) / kBlock;
    if (view.dtype != Dtype::uint8 || !run || view.numel != blocks) {
      refuse("has shape " + describe_shape(view) + " and dtype " + dtype_name(view) +
             "; it must be " + std::to_string(blocks) + " contiguous uint8 numbers");
    }
    if (member.views[k].dtype != Dtype::uint8) {
      refuse("is the scale of codes in uint8, but " + subject(group, k, member.seconds) + " is " +
             dtype_name(member.views[k]));
    }
  }
  uint8_t words[2] = {};  // used by positive and by signed states
  for (int k = 0; k < group.streams; ++k) {
    const View& view = member.views[k];
    Stored& stored = member.stored[k] = {};
    const bool state = k >= 2 && k < average;
    const Rule::Kind kind = state ? states_of(group)[k - 2].kind : Rule::kSigned;
    switch (view.dtype) {
      case Dtype::bfloat16:
        stored.format = Format::bfloat16;
        if (k == 0 && member.has_second(0)) {
          const bool exact = member.second_views[0].dtype == Dtype::int16;
          stored.format = exact ? Format::split16 : Format::split8;
          if (!exact) stored.rounds = Rounds::weight;
        } else if (k == 0 && group.noisy_params) {
          stored.rounds = Rounds::weight;
        }
        break;
      case Dtype::float16:
        stored.format = Format::float16;
        if (k == 0 && member.has_second(0)) {
          const bool wide = member.second_views[0].dtype == Dtype::int16;
          stored.format = wide ? Format::rest16 : Format::rest8;
        } else if (k == 0 && group.noisy_params) {
          stored.rounds = Rounds::weight;
        }
        break;
      case Dtype::uint8:
        stored.format = kind == Rule::kSigned ? Format::signed8 : Format::positive8;
        break;
      default:
        break;
    }
    const bool by_noise = view.dtype == Dtype::uint8 || view.dtype == Dtype::bfloat16;
    if (state && by_noise && (kind == Rule::kSigned || kind == Rule::kPositive)) {
      stored.rounds = kind == Rule::kSigned ? Rounds::signed_ : Rounds::positive;
      stored.word = words[kind == Rule::kSigned]++;
      if (stored.word >= kWords) throw Refused("it has too many states that are rounded by noise");
    }
    if (k == average && (view.dtype == Dtype::bfloat16 || view.dtype == Dtype::float16)) {
      stored.rounds = Rounds::weight;
      stored.word = 1;
    }
    compact |= !stored.plain();
  }
  member.compact = compact;
  if (!compact) return;
  for (int k = 0; k < group.streams; ++k) {
    const View& view = member.views[k];
    if (view.complex || view.dtype == Dtype::float64) {
      throw Refused(subject(group, k, member.seconds) + " has dtype " + dtype_name(view) +
                    "; beside compact formats it must be float32, bfloat16 or float16");
    }
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
      throw Refused(subject(*read.of, suspect.stream, read.seconds) + " " + refused.what());
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
bool Members::reads_written(const Footprint& f) const { return meets(written_, {f.begin, f.end}); }

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
  const auto called = [&](int k) {
    int stream = 0;  // second planes lie between the streams and the numbers
    for (int at = read.of->streams; stream < kMaxStreams && k >= read.of->streams; ++stream) {
      if (read.seconds >> stream & 1 && at++ == k) return second_subject(*read.of, stream);
    }
    const int place = k - (k < read.of->streams ? 0 : __builtin_popcount(read.seconds));
    return subject(*read.of, place, read.seconds);
  };
  for (int b = 1; b < read.footprints; ++b) {
    for (int a = 0; a < b; ++a) {
      if (!own[a].meets(own[b]) || (!writes(*read.of, a) && !writes(*read.of, b))) continue;
      View one, other;
      read_anywhere(own[a].object, &one, true);
      read_anywhere(own[b].object, &other, true);
      if (interleaved(one, other)) continue;
      throw Refused(called(b) + " shares memory with " + (a == 0 ? "the parameter" : called(a)) +
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
