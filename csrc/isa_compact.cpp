// The loop over streams of any formats, and these alone for tests: compiled once per instruction
// set.
#include "kernels.h"
#include "simd/around.h"
#include "simd/fused.h"
#include "simd/norms.h"
#include "simd/squares.h"
#include "simd/turns.h"
#include "simd/vec.h"
//
#include "rules.inc"

namespace fastopt::FASTOPT_ISA {
namespace {

template <class Variant>
using Update = typename Variant::template Update<F32>;

template <class Variant>
Update<Variant> update_of(const double* scalars) {
  typename Variant::Scalars s;
  __builtin_memcpy(&s, scalars, sizeof s);
  return made<Update<Variant>>(s);
}

// The numbers of float32 that a cache line holds.
constexpr int kLine = 16;

// Asks for what lies ahead of these; ahead of what has been decoded, decode_turn() did.
template <class Numbers>
[[gnu::always_inline]] inline void ask_ahead(const Numbers& numbers, int64_t at) {
  for (const float* of : numbers) __builtin_prefetch(of + at + kAheadElements);
}

// kPrepares: a gradient is looked at before the update has it. Adam in bfloat16 with float32 states
// over 16M elements took a tenth more where it always was (AVX2 on an EPYC).
template <bool kPrepares, int kCount, class Update>
[[gnu::always_inline]] inline void update_turn(float* const (&numbers)[kCount], int64_t length,
                                               const Update& update, const Around<F32>& around) {
  constexpr int kStates = kCount - 2;
  for (int64_t at = 0; at < length; at += kLine) {
    ask_ahead(numbers, at);
    for (int lane = 0; lane < kLine; lane += kLanes32) {
      const int64_t j = at + lane;
      F32 p = load_vector<F32>(numbers[0] + j);
      F32 g = load_vector<F32>(numbers[1] + j);
      F32 state[kStates + 1];
      for (int k = 0; k < kStates; ++k) state[k] = load_vector<F32>(numbers[2 + k] + j);
      if (kPrepares && rarely(around.unscale)) {
        g = g / around.grad_scale;
        store_vector(numbers[1] + j, g);
      }
      if (kPrepares) g = around.prepared(g, p);
      update(p, g, state);
      store_vector(numbers[0] + j, p);
      for (int k = 0; k < kStates; ++k) store_vector(numbers[2 + k] + j, state[k]);
    }
  }
}

// As isa.cpp's kernel with all passes, in float32 and a turn at a time. Compiled once for all who
// call it; its constants are copies, so that nothing that is stored may be part of them.
template <class Variant>
[[gnu::noinline]] void update_turns(const CompactRun& run, Update<Variant> update,
                                    Around<F32> around) {
  constexpr int kStates = Variant::kStates, kCount = 2 + kStates;
  Turns turns(run, kCount + around.average);
  Squares<float> sums;
  while (const int64_t length = turns.next()) {
    float* numbers[kCount];
    for (int k = 0; k < kCount; ++k) numbers[k] = turns.open(k);
    alignas(64) float before[kTurn];
    if (rarely(around.track)) __builtin_memcpy(before, numbers[0], length * sizeof(float));
    if (around.prepares) {
      update_turn<true>(numbers, length, update, around);
    } else {
      update_turn<false>(numbers, length, update, around);
    }
    turns.draw();
    if (rarely(around.unscale)) turns.close(1, numbers[1]);
    for (int k = 0; k < kCount; ++k) {
      if (k == 1) continue;
      turns.clear_rest(numbers[k]);
      turns.close(k, numbers[k]);
    }
    if (rarely(around.average || around.track)) {
      const float* const weight = turns.open(0);  // as it was rounded to its format
      if (around.average) {
        float* const average = turns.open(kCount);
        for (int64_t j = 0; j < length; j += kLanes32) {
          __builtin_prefetch(average + j + kAheadElements);
          const F32 end = load_vector<F32>(weight + j);
          const F32 start = load_vector<F32>(average + j);
          store_vector(average + j, run.begins ? end : around.lerp(start, end));
        }
        turns.close(kCount, average);
      }
      for (int64_t j = 0; around.track && j < length; j += kLanes32) {
        const int64_t i = turns.begin() + j;
        const F32 now = load_vector<F32>(weight + j);
        sums.add(kGradSquares, i, 0, load_vector<F32>(numbers[1] + j));
        sums.add(kUpdateSquares, i, 0, now - load_vector<F32>(before + j));
        sums.add(kWeightSquares, i, 0, now);
        sums.advance(i + kLanes32);
      }
    }
    if (rarely(around.clear)) turns.zero(1);
    turns.put_back(around.unscale || around.clear);
  }
  if (around.track) sums.finish(turns.begin(), run.sums);
}

// What the update of a rule waits for, likewise: nothing is written.
template <class Variant>
[[gnu::noinline]] void measure_turns(const CompactRun& run, Update<Variant> update,
                                     Around<F32> around) {
  constexpr bool kReads = kMeasuresStates<Update<Variant>, F32>;
  constexpr int kStates = kReads ? Variant::kStates : 0, kCount = 2 + kStates;
  Turns turns(run, kCount);
  Norms<float> norms;
  while (const int64_t length = turns.next()) {
    const float* numbers[kCount];
    for (int k = 0; k < kCount; ++k) numbers[k] = turns.open(k);
    alignas(64) float found[kTurn];
    for (int64_t at = 0; at < length; at += kLine) {
      ask_ahead(numbers, at);
      for (int lane = 0; lane < kLine; lane += kLanes32) {
        const int64_t j = at + lane;
        const F32 p = load_vector<F32>(numbers[0] + j);
        F32 g = load_vector<F32>(numbers[1] + j);
        if (rarely(around.unscale)) g = g / around.grad_scale;
        g = around.prepared(g, p);
        F32 state[kStates + 1];
        for (int k = 0; k < kStates; ++k) state[k] = load_vector<F32>(numbers[2 + k] + j);
        store_vector(found + j, measured(update, p, g, state));
        norms.add(kNormWeightSquares, p);
      }
    }
    turns.clear_rest(found);
    for (int64_t j = 0; j < length; j += kLanes32) {
      norms.add(kNormSquares, load_vector<F32>(found + j));
    }
  }
  norms.finish(0, run.sums);
}

template <Sweep kSweep, class Variant>
void by_turns(const CompactRun& run, const Update<Variant>& update, const Around<F32>& around) {
  if constexpr (kSweep == Sweep::measure) {
    measure_turns<Variant>(run, update, around);
  } else {
    update_turns<Variant>(run, update, around);
  }
}

template <Sweep kSweep, class Variant>
void by_turns(const CompactRun& run, const double* scalars, const Passes& passes) {
  by_turns<kSweep, Variant>(run, update_of<Variant>(scalars), made<Around<F32>>(passes));
}

// Plain streams of several dtypes, none of them double: each in the format that its dtype is.
template <Sweep kSweep, class Variant>
void mixed_kernel(const Run* runs, int64_t run_count, const double* scalars, const Passes& passes) {
  const auto update = update_of<Variant>(scalars);
  const auto around = made<Around<F32>>(passes);
  const int streams = 2 + Variant::kStates + (kSweep == Sweep::passes && passes.average);
  for (const Run* run = runs; run < runs + run_count; ++run) {
    CompactRun as{};
    for (int k = 0; k < streams; ++k) {
      const Dtype dtype = run->dtypes[k];
      as.streams[k].first = run->streams[k];
      as.streams[k].stored.format = dtype == Dtype::bfloat16  ? Format::bfloat16
                                    : dtype == Dtype::float16 ? Format::float16
                                                              : Format::float32;
    }
    as.count = run->count;
    as.sums = run->sums;
    by_turns<kSweep, Variant>(as, update, around);
  }
}

// Compact formats and their noise by turns, what is left of one in copies.
void decode_all(Format from, const char* first, const char* second, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kTurn) {
    const int64_t left = count - i < kTurn ? count - i : kTurn;
    char planes[2][kTurn * sizeof(float)] = {};
    float numbers[kTurn];
    __builtin_memcpy(planes[0], first + first_bytes(from, i), first_bytes(from, left));
    if (second)
      __builtin_memcpy(planes[1], second + second_bytes(from, i), second_bytes(from, left));
    decode_turn(from, planes[0], planes[1], numbers, kTurn);
    __builtin_memcpy(out + i, numbers, left * sizeof(float));
  }
}

void encode_all(const Stored& to, const float* in, const uint32_t* words, char* first, char* second,
                int64_t count) {
  for (int64_t i = 0; i < count; i += kTurn) {
    const int64_t left = count - i < kTurn ? count - i : kTurn;
    char planes[2][kTurn * sizeof(float)] = {};
    float numbers[kTurn] = {};
    uint32_t random[kTurn] = {};
    __builtin_memcpy(numbers, in + i, left * sizeof(float));
    __builtin_memcpy(random, words + i, left * sizeof(uint32_t));
    encode_turn(to, numbers, random, planes[0], planes[1], kTurn);
    __builtin_memcpy(first + first_bytes(to.format, i), planes[0], first_bytes(to.format, left));
    if (!second) continue;
    __builtin_memcpy(second + second_bytes(to.format, i), planes[1], second_bytes(to.format, left));
  }
}

void words_of(uint64_t key, uint32_t element, uint32_t* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kTurn) {
    const int64_t left = count - i < kTurn ? count - i : kTurn;
    uint32_t words[kTurn];
    fill_words(key, element + uint32_t(i), words, kTurn);
    __builtin_memcpy(out + i, words, left * sizeof(uint32_t));
  }
}

// What is compiled in registers: the formats that are most used, of the rules that are; not where a
// multiply-add is made in software, which is most of the time.
using Fusible = List<Formats<Float32, Float32, 16>, Formats<Float32, Float32, 8>,
                     Formats<Split8, Bfloat16, 16>, Formats<Split8, Bfloat16, 8>,
                     Formats<Split16, Bfloat16, 16>, Formats<Split16, Bfloat16, 8>,
                     Formats<Bfloat16, Bfloat16, 16>, Formats<Bfloat16, Bfloat16, 8>>;
template <class Variant>
constexpr bool kFuses =
    kFusesDoubles && (__is_same(Variant, adam::Adam<false>) || __is_same(Variant, lion::Lion) ||
                      __is_same(Variant, sgd::Sgd<true>));

// The bare update in registers where it is compiled so; the rest by turns.
template <const Rule& kRule, int kVariant, class Variant>
void kernel(const CompactRun& run, const double* scalars, const Passes& passes) {
  if constexpr (kFuses<Variant>) {
    if (!passes.more() && !passes.unscale) {
      const int64_t done = run_fused<kRule, kVariant, Variant>(Fusible{}, run, scalars, passes);
      if (done == run.count) return;
      CompactRun left = run;
      for (int k = 0; k < 2 + Variant::kStates; ++k) {
        CompactStream& stream = left.streams[k];
        stream.first += first_bytes(stream.stored.format, done);
        stream.second += second_bytes(stream.stored.format, done);
      }
      left.count -= done;
      left.element += uint64_t(done);
      return by_turns<Sweep::passes, Variant>(left, scalars, passes);
    }
  }
  by_turns<Sweep::passes, Variant>(run, scalars, passes);
}

template <const Rule& kRule, int kVariant>
void add(Kernels&, int, List<>) {}
template <const Rule& kRule, int kVariant, class Variant, class... More>
void add(Kernels& table, int rule, List<Variant, More...>) {
  table.compact[int(Sweep::passes)][rule][kVariant] = kernel<kRule, kVariant, Variant>;
  table.mixed[int(Sweep::passes)][rule][kVariant][0] = mixed_kernel<Sweep::passes, Variant>;
  if constexpr (kRule.measured != nullptr) {
    table.compact[int(Sweep::measure)][rule][kVariant] = by_turns<Sweep::measure, Variant>;
    table.mixed[int(Sweep::measure)][rule][kVariant][0] = mixed_kernel<Sweep::measure, Variant>;
  }
  add<kRule, kVariant + 1>(table, rule, List<More...>{});
}

}  // namespace

void add_compact(Kernels& table);

void add_compact(Kernels& table) {
  int rule = 0;
#define FASTOPT_ADD(name) add<name::kRule, 0>(table, rule++, name::All{});
  FASTOPT_RULES(FASTOPT_ADD)
  table.decode = decode_all;
  table.encode = encode_all;
  table.words = words_of;
}

}  // namespace fastopt::FASTOPT_ISA
