// The table of compiled kernels that each instruction set fills, and what a kernel is called with.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>

#include "adafactor.h"
#include "dtypes.h"
#include "formats.h"
#include "rules/rule.h"

namespace fastopt {

constexpr int kMaxRules = 32;
constexpr int kMaxStreams = 3 + kMaxStates;  // param, grad, states, moving average
constexpr int kMaxTensors = kMaxStreams + kMaxCarried;
constexpr const char* kAverageName = "ema";
// Second planes: the correction of a 16-bit parameter, the scales of a state's codes.
constexpr const char* kLowName = "master_low";
constexpr const char* kScaleSuffix = "_scale";
// A state in codes has a name of its own: whoever does not know of them, as a loader that converts
// dtypes does not, misses the state rather than take codes for numbers.
constexpr const char* kCodesSuffix = "_codes";
constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// How a run is gone over: the bare update, that of a gradient which is unscaled or negated first,
// the update with all passes, or nothing but the norms that it waits for.
enum class Sweep { bare, prepared, passes, measure };
constexpr int kSweeps = 4;

// The passes around a rule's update, the same for every rule, in the order in which they happen.
struct Passes {
  bool unscale = false;  // GradScaler's protocol: divide by grad_scale and write the gradient back
  double grad_scale = 1;
  bool clip_norm = false;
  double max_grad_norm = kUnlimited;
  double clip_factor = 1;  // what max_grad_norm comes to, once the norm is known
  double max_grad_value = kUnlimited;
  bool maximize = false;
  double l1 = 0;
  bool average = false;
  double ema_decay = 0;
  bool clear_grads = false;
  bool track_stats = false;
  bool skip_nonfinite = false;

  bool writes_grads() const { return unscale || clear_grads; }

  // Which of them there are, one bit each: what is compiled and which buffers there are depends on
  // it.
  int switches() const {
    int bits = 0;
    for (const bool on : {clip_norm, max_grad_value != kUnlimited, l1 != 0, average, clear_grads,
                          track_stats, skip_nonfinite}) {
      bits = 2 * bits + on;
    }
    return bits;
  }

  // The least that does what they ask for.
  Sweep sweep() const {
    return more() ? Sweep::passes : unscale || maximize ? Sweep::prepared : Sweep::bare;
  }
  bool more() const {
    return clip_norm || max_grad_value != kUnlimited || l1 != 0 || average || clear_grads ||
           track_stats;
  }
};

// Elements to update: streams[0] is the parameter, [1] the gradient, then the states in the rule's
// order and the moving average, each contiguous and with any alignment.
struct Run {
  char* streams[kMaxStreams];
  int64_t count;
  double* sums;         // of statistics, kSums; or of a norm, kMeasures: added to
  const Dtype* dtypes;  // of each stream, for the kernels of mixed ones
};
enum { kGradSquares, kUpdateSquares, kWeightSquares, kSums };
// What a rule measures before its update, each sum with what its roundings have lost: see TwoSum.
enum { kNormSquares, kNormWeightSquares, kNorms };
constexpr int kMeasures = 2 * kNorms;

// A sum and what its roundings have lost (D. Knuth, The art of computer programming, 4.2.2).
template <class X>
struct TwoSum {
  X high, low;
  void add(X x) {
    const X sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part);
    high = sum;
  }
};

// The norm is summed in blocks of so many numbers, each by halving: of 1024 squares in double the
// i-th and the (i + 512)-th are added, then the i-th and the (i + 256)-th, ... A partial block is
// filled up with zeros. No vector width, thread or GPU block shows in such a sum.
constexpr int kNormBlock = 1024;

// Many runs a call: setting up the scalars costs as much as updating a small tensor.
using Kernel = void (*)(const Run* runs, int64_t run_count, const double* scalars,
                        const Passes& passes);

// The same where a stream is in a compact format: all of them float32 or less. Its elements follow
// one another in the parameter's flat global index, from a multiple of kBlock of the tensor on.
struct CompactStream {
  char* first;
  char* second;  // the other plane, if its format has one
  Stored stored;
};
struct CompactRun {
  CompactStream streams[kMaxStreams];
  int64_t count;
  uint64_t element;  // global index of the first; its upper half is that of all of them
  uint64_t keys[kWords];
  double* sums;
  bool begins;  // the average becomes what the weight is
};
using CompactKernel = void (*)(const CompactRun& run, const double* scalars, const Passes& passes);

struct Kernels {
  const char* isa;
  int rule_count = 0;
  Rule rules[kMaxRules];
  Kernel update[kSweeps][kMaxRules][kMaxVariants][kDtypes];
  // Streams of several dtypes, no bare update: [0] in float32, by turns, as compact ones are; [1]
  // in float64, where one of them is.
  Kernel mixed[kSweeps][kMaxRules][kMaxVariants][2];
  // Streams of any formats, likewise.
  CompactKernel compact[kSweeps][kMaxRules][kMaxVariants];
  // The sum of squares of each block of kNormBlock numbers; false where one is NaN or infinite.
  bool (*square_sums[kDtypes])(const char* numbers, int64_t count, double* sums);
  AdafactorKernels adafactor[kDtypes];
  // The floor a step is measured against: read every stream, write the first `writes` back.
  void (*stream)(float* const* streams, int reads, int writes, int64_t begin, int64_t end);
  // 16-bit conversions by themselves, for tests: to float32 and back to the given type.
  void (*widen)(Dtype from, const uint16_t* in, float* out, int64_t count);
  void (*narrow)(Dtype to, const float* in, uint16_t* out, int64_t count);
  // Compact formats likewise, rounded by a word for each number; and these words.
  void (*decode)(Format from, const char* first, const char* second, float* out, int64_t count);
  void (*encode)(const Stored& to, const float* in, const uint32_t* words, char* first,
                 char* second, int64_t count);
  void (*words)(uint64_t key, uint32_t element, uint32_t* out, int64_t count);
};

}  // namespace fastopt
