// The one loop, the registry of rules, the table: compiled once per instruction set.
#include <type_traits>

#include "kernels.h"
#include "simd/around.h"
#include "simd/norms.h"
#include "simd/squares.h"
#include "simd/streams.h"
#include "simd/vec.h"
//
#include "rules.inc"

namespace fastopt::FASTOPT_ISA {
namespace {

// What a sweep sums up.
template <Sweep kSweep, class E>
using Sums = std::conditional_t<kSweep == Sweep::measure, Norms<E>, Squares<E>>;

// What a sweep looks at: the gradient's scale and sign; all passes.
template <Sweep kSweep>
constexpr bool kPrepares = kSweep != Sweep::bare;
template <Sweep kSweep>
constexpr bool kMore = kPrepares<kSweep> && kSweep != Sweep::prepared;

// How far ahead of its update a stream is asked for, by the rules that say so (kPrefetch). The
// processor's own prefetching stops at page ends, which many mid-sized tensors have many of: Adam
// over 100 tensors of 256x256 took 2673 us without, 2257 at 512, 2108 at 1024, 1981 at 2048, 1988
// at 4096 bytes (two cores of a Xeon with AVX-512); RMSprop over 64M elements 5 % less time. Asking
// once a cache line rather than once a register, which is up to four times, changed less than 2 %.
constexpr int64_t kPrefetchBytes = 2048;

// Load every stream, update, store what may be written; `Lanes` is Full or Partial.
template <class Variant, Sweep kSweep, class Lanes, class Streams, class Update, class V>
inline void apply(const Lanes& lanes, const Streams& streams, int64_t i, const Update& update,
                  const Around<V>& around, Sums<kSweep, typename Streams::E>* sums) {
  constexpr bool kMeasures = kSweep == Sweep::measure;
  using S = typename Streams::S;
  constexpr int kStates = Variant::kStates, kParts = S::kParts;
  using Raw = typename S::Raw;
  const auto load = [&](int k) { return streams.load(lanes, k, i); };
  const auto store = [&](int k, Raw raw) { streams.store(lanes, k, i, raw); };
  Raw raw[2 + kStates] = {load(0), load(1)};
  for (int k = 2; k < 2 + kStates; ++k) raw[k] = load(k);
  V param[kParts], unscaled[kParts], states[kStates + 1][kParts];
  for (int part = 0; part < kParts; ++part) {
    V p = S::widen(raw[0], part);
    V g = S::widen(raw[1], part);
    V state[kStates + 1];
    for (int k = 0; k < kStates; ++k) state[k] = S::widen(raw[2 + k], part);
    if (kPrepares<kSweep> && rarely(around.unscale)) g = g / around.grad_scale;
    unscaled[part] = g;
    if constexpr (kPrepares<kSweep>) g = around.template prepared<kMore<kSweep>>(g, p);
    if constexpr (kMeasures) {
      V x = measured(update, p, g, state);
      keep_numbers<S>(lanes, part, x);
      sums->add(kNormSquares, x);
      sums->add(kNormWeightSquares, p);
      continue;
    } else {
      update(p, g, state);
    }
    param[part] = p;
    for (int k = 0; k < kStates; ++k) states[k][part] = state[k];
  }
  if constexpr (kMeasures) return;
  if (kPrepares<kSweep> && rarely(around.unscale)) store(1, S::narrow(unscaled));
  // The parameter last: it waits for the update's division, during which the states are rounded.
  for (int k = 0; k < kStates; ++k) store(2 + k, S::narrow(states[k]));
  store(0, S::narrow(param));
  if constexpr (kSweep == Sweep::passes) {
    const Raw weight = load(0);  // as it was rounded to its type
    if (rarely(around.average)) {
      __builtin_prefetch(streams.at(2 + kStates, i) + kPrefetchBytes);
      const Raw last = load(2 + kStates);
      V average[kParts];
      for (int part = 0; part < kParts; ++part) {
        average[part] = around.lerp(S::widen(last, part), S::widen(weight, part));
      }
      store(2 + kStates, S::narrow(average));
    }
    if (rarely(around.clear)) store(1, Raw{});
    if (around.track) {
      for (int part = 0; part < kParts; ++part) {
        const V now = S::widen(weight, part);
        sums->add(kGradSquares, i, part, unscaled[part]);
        sums->add(kUpdateSquares, i, part, now - S::widen(raw[0], part));
        sums->add(kWeightSquares, i, part, now);
      }
      sums->advance(i + kNumbers<typename Streams::E>);
    }
  }
}

// The terms that an option switches (weight decay, nesterov, clamping, ...) are branches on loop
// invariants: always predicted, and hidden behind memory. Only what adds a stream is a template,
// and the sweep, so that the bare update stays what it is: four branches on its gradient took 10 %
// of Adam's time in the caches, a quarter of SGD's (AVX2 on an EPYC).
template <class Streams, class Variant, Sweep kSweep>
void kernel(const Run* runs, int64_t run_count, const double* scalars, const Passes& passes) {
  using E = typename Streams::E;
  typename Variant::Scalars s;
  __builtin_memcpy(&s, scalars, sizeof s);
  const auto update = made<typename Variant::template Update<Compute<E>>>(s);
  const auto around = made<Around<Compute<E>>>(passes);
  constexpr int kAsked = [] {
    constexpr int kAll = 2 + Variant::kStates;
    if constexpr (kSweep == Sweep::measure) {
      return kMeasuresStates<decltype(update), Compute<E>> ? kAll : 2;
    }
    return Variant::kPrefetch || kMore<kSweep> ? kAll : 0;
  }();
  for (const Run* run = runs; run < runs + run_count; ++run) {
    const Streams streams(*run);
    const int64_t length = run->count;
    Sums<kSweep, E> sums;
    int64_t i = 0;
    for (; i + kNumbers<E> <= length; i += kNumbers<E>) {
      for (int k = 0; k < kAsked; ++k) __builtin_prefetch(streams.at(k, i) + kPrefetchBytes);
      apply<Variant, kSweep>(Full{}, streams, i, update, around, &sums);
    }
    if (i < length) {
      apply<Variant, kSweep>(Partial{length - i}, streams, i, update, around, &sums);
      i += kNumbers<E>;
    }
    if (kSweep == Sweep::measure || (kMore<kSweep> && around.track)) sums.finish(i, run->sums);
  }
}

template <class E>
bool square_sums(const char* numbers, int64_t count, double* sums) {
  bool finite = true;
  for (int64_t i = 0; i < count; i += kNormBlock) {
    const E* block = reinterpret_cast<const E*>(numbers) + i;
    const int64_t n = count - i < kNormBlock ? count - i : kNormBlock;
    const double sum = *sums++ = block_square_sum(block, n);
    if (sum - sum == 0) continue;
    // Squares of finite doubles overflow too: only the numbers themselves can tell.
    for (int64_t k = 0; k < n; ++k) {
      const auto x = Storage<E>::widen(Partial{1}.load<Storage<E>>(block + k), 0);
      finite &= x[0] - x[0] == 0;
    }
  }
  return finite;
}

template <class Variant, Sweep kSweep>
constexpr int kStreams = 2 + Variant::kStates + (kSweep == Sweep::passes);

template <class Variant, Sweep kSweep>
void fill(Kernels& table, int rule, int variant) {
  constexpr int kCount = kStreams<Variant, kSweep>;
  Kernel* const row = table.update[int(kSweep)][rule][variant];
  row[int(Dtype::float32)] = kernel<Alike<float, kCount>, Variant, kSweep>;
  row[int(Dtype::float64)] = kernel<Alike<double, kCount>, Variant, kSweep>;
  row[int(Dtype::bfloat16)] = kernel<Alike<bfloat16, kCount>, Variant, kSweep>;
  row[int(Dtype::float16)] = kernel<Alike<float16, kCount>, Variant, kSweep>;
  if constexpr (kMore<kSweep>) {
    table.mixed[int(kSweep)][rule][variant][1] = kernel<Mixed<kCount>, Variant, kSweep>;
  }
}

// One row a variant, in the order of the rule's table of states; one column an element type. The
// structs must be what the table says of them, and fit what is handed over.
template <const Rule& kRule, class Hyper, class Scalars, int kMore, class... Variants>
void enrol(Kernels& table, List<Variants...>) {
  static_assert(sizeof...(Variants) == kRule.variants && kRule.variants <= kMaxVariants);
  static_assert(hyper_numbers(kRule) <= kMaxHyper, "raise kMaxHyper in rules/rule.h");
  static_assert(length(kRule.scalar_names) <= kMaxScalars, "raise kMaxScalars in rules/rule.h");
  static_assert(length(kRule.carries) <= kMaxCarried, "raise kMaxCarried in rules/rule.h");
  static_assert(kMore == (length(kRule.carries) ? length(kRule.carries) - 1 : 0));
  static_assert(sizeof(Hyper) == hyper_numbers(kRule) * sizeof(double));
  static_assert(sizeof(Scalars) == length(kRule.scalar_names) * sizeof(double));
  static_assert([] {
    int variant = 0;
    return ((Variants::kStates == length(kRule.states[variant++])) && ...);
  }());
  const int index = table.rule_count++;
  table.rules[index] = kRule;
  int variant = 0;
  (
      [&] {
        fill<Variants, Sweep::bare>(table, index, variant);
        fill<Variants, Sweep::prepared>(table, index, variant);
        fill<Variants, Sweep::passes>(table, index, variant);
        if constexpr (kRule.measured != nullptr) {
          fill<Variants, Sweep::measure>(table, index, variant);
        }
        ++variant;
      }(),
      ...);
}

void stream(float* const* streams, int reads, int writes, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes32) {
    F32 sum{};
    for (int k = 0; k < reads; ++k) {
      __builtin_prefetch(streams[k] + i + kPrefetchBytes / sizeof(float));
      sum += Full::load<Storage<float>>(streams[k] + i);
    }
    for (int k = 0; k < writes; ++k) Full::store<Storage<float>>(streams[k] + i, sum);
  }
}

// Storage types to float32 and back, as a kernel loads and stores them.
template <class E, class Use>
void for_each_number(int64_t count, const Use& use) {
  for (int part = 0; part < Storage<E>::kParts; ++part) {
    for (int lane = 0; lane < kLanes<E>; ++lane) {
      const int number = Storage<E>::element(part, lane);
      if (number < count) use(part, lane, number);
    }
  }
}

template <class E>
void widen_all(const uint16_t* in, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kNumbers<E>) {
    const Partial tail{count - i < kNumbers<E> ? count - i : kNumbers<E>};
    const auto raw = tail.load<Storage<E>>(reinterpret_cast<const E*>(in) + i);
    for_each_number<E>(tail.count, [&](int part, int lane, int number) {
      out[i + number] = Storage<E>::widen(raw, part)[lane];
    });
  }
}

template <class E>
void narrow_all(const float* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kNumbers<E>) {
    const Partial tail{count - i < kNumbers<E> ? count - i : kNumbers<E>};
    F32 parts[Storage<E>::kParts] = {};
    for_each_number<E>(tail.count,
                       [&](int part, int lane, int number) { parts[part][lane] = in[i + number]; });
    tail.store<Storage<E>>(reinterpret_cast<E*>(out) + i, Storage<E>::narrow(parts));
  }
}

}  // namespace

// Of isa_compact.cpp: compiled by itself, so that what GCC inlines there changes nothing here.
void add_compact(Kernels& table);
void add_adafactor(Kernels& table);

// Called only once the processor is known to have the instruction set: a table filled by a static
// initialiser would run this file's instructions on every machine.
Kernels kernels() {
  Kernels table{};
  table.isa = FASTOPT_ISA_NAME;
#define FASTOPT_COUNT(rule) +1
  static_assert(FASTOPT_RULES(FASTOPT_COUNT) <= kMaxRules, "raise kMaxRules in kernels.h");
#define FASTOPT_ENROL(rule) \
  enrol<rule::kRule, rule::Hyper, rule::Scalars, Numbers<rule::scalars>::kMore>(table, rule::All{});
  FASTOPT_RULES(FASTOPT_ENROL)
  table.square_sums[int(Dtype::float32)] = square_sums<float>;
  table.square_sums[int(Dtype::float64)] = square_sums<double>;
  table.square_sums[int(Dtype::bfloat16)] = square_sums<bfloat16>;
  table.square_sums[int(Dtype::float16)] = square_sums<float16>;
  table.stream = stream;
  table.widen = [](Dtype from, const uint16_t* in, float* out, int64_t count) {
    (from == Dtype::bfloat16 ? widen_all<bfloat16> : widen_all<float16>)(in, out, count);
  };
  table.narrow = [](Dtype to, const float* in, uint16_t* out, int64_t count) {
    (to == Dtype::bfloat16 ? narrow_all<bfloat16> : narrow_all<float16>)(in, out, count);
  };
  add_compact(table);
  add_adafactor(table);
  return table;
}

}  // namespace fastopt::FASTOPT_ISA
