// The parameters of one step as they are read: one with its tensors, then all of them: each checked
// by itself, then against one another.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "hyper.h"
#include "kernels.h"
#include "tensors.h"

namespace fastopt {

// Something is not as it was planned; nothing has been written when it is thrown.
struct Changed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A number that a parameter carries, in the host's memory.
inline Carried load(const void* at, bool wide) {
  return {wide ? *static_cast<const double*>(at) : *static_cast<const float*>(at), wide};
}
inline void store(const Carried& number, void* at) {
  if (number.wide) {
    *static_cast<double*>(at) = number.value;
  } else {
    *static_cast<float*>(at) = float(number.value);
  }
}

// What part of its parameter a process holds: elements by runs of `run` (0: all in one), that
// follow one another in the whole's row-major order from `first` on at a distance of `stride`; and
// which processes hold the rest: those of a number sum up alike.
struct Shard {
  uint64_t first = 0;
  int64_t run = 0, stride = 0;
  int team = 0;
};

// A parameter with its tensors, borrowed: what every backend's share of a step is made of.
struct Member {
  int index;  // over all groups, as in messages and stats()
  int group;
  const Group* of;
  Shard shard;
  // Its streams: parameter, gradient, states, the moving average; then the numbers it carries.
  PyObject* tensors[kMaxTensors];
  unsigned seconds = 0;  // a bit for each stream that has a second plane:
  PyObject* second[kMaxStreams];
  bool first, begins;  // its states have never been written; nor has its average
  // Found by Members::read():
  View views[kMaxTensors];
  bool flat;     // each stream is one contiguous run
  bool compact;  // a stream is in a format that is more than its dtype; then:
  Stored stored[kMaxStreams];
  View second_views[kMaxStreams];

  bool has_second(int k) const { return seconds >> k & 1; }
  const View& number(int k) const { return views[of->streams + k]; }
};

// The key in a parameter's state of its tensor in this place, from 2 on.
const char* state_key(const Group& group, int place);

// Everything it holds is reused from step to step: after the first step nothing allocates.
class Members {
 public:
  void clear();

  // Read the tensors that `member` has been given. Runs no Python unless it throws Refused.
  void read(Member& member);

  // The last checks, once all are read: memory that the step reaches twice, then tensors that may
  // be lazy views, which runs Python. Throws Refused, with the parameter it is about in *index.
  void settle(int* index);

  // Found by settle(): whether parameters reach the same memory, and so are to be updated one after
  // the other, as torch's loop does; whether anything has moved since the step before.
  bool share_memory() const { return written_shared_ || reads_shared_; }
  bool moved() const { return moved_any_; }

  // Of each parameter, in the order read, how many others must be updated before it, one by one.
  std::vector<int> layers() const;

 private:
  // Memory that reading a tensor touches, and that the update touches. The next step, which reads
  // the same tensors, asks for both ahead; and it tells whether memory is shared: extents that let
  // no two reads overlap are not looked at again while they stay what they were.
  struct Footprint {
    PyObject* object;
    const char* metadata;
    char* begin;
    char* end;
    bool meets(const Footprint& other) const {
      return begin != end && other.begin != other.end && begin < other.end && other.begin < end;
    }
  };
  struct Read {  // a parameter that was
    int index;
    const Group* of;
    size_t first;  // its first footprint
    int footprints;
    unsigned seconds;  // a bit for each stream that has a second plane
  };
  // A tensor that may be a lazy view; asking it runs Python, for which it is held.
  struct Suspect {
    pybind11::object tensor;
    size_t read;
    int stream;
  };

  void read_formats(Member& member);
  void remember(PyObject* tensor, const View& view, bool run, bool written);
  void prefetch(size_t tensors) const;
  template <class Visit>
  void each_footprint(const Visit& visit) const;
  bool reads_written(const Footprint& footprint) const;
  void find_shared_memory();
  void refuse_own_overlap(const Read& read) const;
  bool meet(const Read& a, const Read& b) const;

  std::vector<Read> reads_;
  std::vector<Footprint> footprints_;
  size_t footprint_ = 0;  // of the tensor read next
  std::vector<Suspect> suspects_;
  std::vector<char> writes_grads_;  // by parameter, in the last step
  // Found by settle(), and kept while nothing moves.
  size_t settled_ = 0;           // footprints that it has seen
  bool written_moved_ = false;   // since then, memory that is written
  std::vector<size_t> moved_;    // likewise, gradients that are only read
  std::vector<Extent> written_;  // sorted; apart unless written_shared_
  bool written_shared_ = false;  // two written tensors overlap
  bool reads_shared_ = false;    // a gradient that is only read is written as something else
  bool moved_any_ = false;
};

}  // namespace fastopt
