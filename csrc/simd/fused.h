// The bare update over compact streams in registers, for formats that are known when it is
// compiled.
#pragma once

#include <utility>

#include "around.h"
#include "turns.h"

namespace fastopt::FASTOPT_ISA {
namespace {

// The codecs of a parameter and its gradient, and how many bits a state has.
template <class W, class G, int kBits>
struct Formats {
  using Weight = W;
  using Grad = G;
  static constexpr int kStateBits = kBits;
  // Float32 numbers lie as they lie in memory; where all are words or bytes, a vector takes
  // whichever interleaving gives it, and no instruction moves them: split8 with bfloat16 states
  // took 13.5 ns per 16 elements in order, so 12.7 (AVX2 on a Xeon, in the caches; 11.4 and 10.6
  // with AVX-512).
  static constexpr bool kInOrder = W::kBytes == 4 || G::kBytes == 4;
};

// How a parameter in a codec's format is stored, and a state of a kind.
template <class Codec>
constexpr Stored kStored = {Format::float32, Rounds::nearest, 0};
template <>
constexpr Stored kStored<Bfloat16> = {Format::bfloat16, Rounds::weight, 0};
template <>
constexpr Stored kStored<Split8> = {Format::split8, Rounds::weight, 0};
template <>
constexpr Stored kStored<Split16> = {Format::split16, Rounds::nearest, 0};

constexpr Stored state_stored(Rule::Kind kind, int bits) {
  const bool is_signed = kind == Rule::kSigned;
  const Format byte = is_signed ? Format::signed8 : Format::positive8;
  return {bits == 16 ? Format::bfloat16 : byte, is_signed ? Rounds::signed_ : Rounds::positive, 0};
}

// Calls use(Index<0>{}), use(Index<1>{}), ...: a loop that is unrolled whatever the compiler thinks
// of it, and whose counter is a constant. Not unrolled, split8 with 8-bit states took 22.1 ns per
// 16 elements in place of 19.1 (AVX2 on a Xeon, in the caches).
template <int k>
struct Index {
  static constexpr int value = k;
};
template <int... k, class Use>
[[gnu::always_inline]] inline void each(std::integer_sequence<int, k...>, const Use& use) {
  (use(Index<k>{}), ...);
}
template <int kCount, class Use>
[[gnu::always_inline]] inline void each(const Use& use) {
  each(std::make_integer_sequence<int, kCount>{}, use);
}
#define FASTOPT_INLINE(argument) [&](auto argument) __attribute__((always_inline))

template <const Rule& kRule, int kVariant, class Variant, class Of>
class Fused {
 public:
  static bool fits(const CompactRun& run) {
    bool fits = run.streams[0].stored == kStored<Weight> &&
                run.streams[1].stored == Stored{kStored<Grad>.format};
    for (int k = 0; k < kStates; ++k) {
      const Rule::Kind kind = kRule.states[kVariant][k].kind;
      fits &= run.streams[2 + k].stored == state_stored(kind, Of::kStateBits);
    }
    return fits;
  }

  // Whole blocks of a run, a few at a time: the codes of a block wait for its largest numbers, and
  // these maxima are found at once. One by one, split8 with 8-bit states took 19.1 ns per 16
  // elements, so 17.8 (AVX2 on a Xeon, in the caches; 15.7 and 14.7 with AVX-512).
  static void kernel(const CompactRun& run, const double* scalars, const Passes& passes) {
    typename Variant::Scalars s;
    __builtin_memcpy(&s, scalars, sizeof s);
    const Fused fused(run, made<Update>(s), passes.maximize);
    Kept kept[kGroup];
    const int64_t blocks = run.count / kBlock;
    for (int64_t begin = 0; begin < blocks; begin += kGroup) {
      const int64_t end = begin + kGroup < blocks ? begin + kGroup : blocks;
      for (int64_t b = begin; b < end; ++b) fused.update_block(b * kBlock, kept[b - begin]);
      for (int64_t b = begin; b < end; ++b) fused.encode_block(b * kBlock, kept[b - begin]);
    }
  }

 private:
  using Weight = typename Of::Weight;
  using Grad = typename Of::Grad;
  using Update = typename Variant::template Update<F32>;
  static constexpr bool kInOrder = Of::kInOrder, kBytes = Of::kStateBits == 8;
  static constexpr int kStates = Variant::kStates, kStateBytes = Of::kStateBits / 8;
  static constexpr int kGroup = 4;
  static constexpr bool is_signed(int k) { return kRule.states[kVariant][k].kind == Rule::kSigned; }
  static constexpr Rounds rounds(int k) {
    return is_signed(k) ? Rounds::signed_ : Rounds::positive;
  }

  // Of a block, by pairs of vectors: words of noise, numbers to be coded, the bytes of the rest.
  struct Kept {
    U32 word[kPairs][2], state[kStates][kPairs][2], tops[kStates];
    Words rest[kPairs];
  };

  // Copies of all: a byte that is stored may be part of whatever has an address elsewhere.
  Fused(const CompactRun& run, const Update& of, bool maximize)
      : update_(of), noise_(run.keys[0]), element_(uint32_t(run.element)), maximize_(maximize) {
    planes_[0] = run.streams[0].first;
    planes_[1] = run.streams[0].second;
    planes_[2] = run.streams[1].first;
    for (int k = 0; k < kStates; ++k) {
      planes_[3 + k] = run.streams[2 + k].first;
      scales_[k] = run.streams[2 + k].second;
    }
  }

  [[gnu::always_inline]] void update_block(int64_t i, Kept& kept) const {
    const U32 begin = noise_.start(element_ + uint32_t(i));
    uint32_t scale[kStates];
    for (int k = 0; k < kStates; ++k) scale[k] = kBytes ? uint8_t(scales_[k][i / kBlock]) : 0;
    U32 tops[kStates] = {};
    each<kPairs>(FASTOPT_INLINE(index) {
      constexpr int pair = decltype(index)::value;
      ask<pair>(i);
      const int64_t at = i + pair * kPair;
      U32 p[2], g[2], x[kStates][2], word[2];
      Weight::template load<kInOrder>(plane<Weight::kBytes>(0, at), plane<Weight::kRest>(1, at), p);
      Grad::template load<kInOrder>(plane<Grad::kBytes>(2, at), nullptr, g);
      each<kStates>(FASTOPT_INLINE(state) {
        constexpr int k = decltype(state)::value;
        const char* const from = plane<kStateBytes>(3 + k, at);
        if constexpr (kBytes) {
          Byte<is_signed(k)>::decode(load_bytes<kInOrder>(from), scale[k], x[k]);
        } else {
          Bfloat16::load<kInOrder>(from, nullptr, x[k]);
        }
      });
      F32 sum[2];
      each<2>(FASTOPT_INLINE(half) {
        constexpr int part = decltype(half)::value;
        word[part] = noise_(begin, 2 * pair + part);
        if constexpr (kBytes) kept.word[pair][part] = word[part];
        F32 w = (F32)p[part], of = (F32)g[part], states[kStates];
        for (int k = 0; k < kStates; ++k) states[k] = (F32)x[k][part];
        if (rarely(maximize_)) of = -of;
        update_(w, of, states);
        p[part] = (U32)w;
        sum[part] = w;
        for (int k = 0; k < kStates; ++k) {
          x[k][part] = (U32)states[k];
          sum[part] += states[k];
        }
      });
      // One look for a NaN in all that is rounded: it would show in the sums.
      if (rarely(any_nan(sum[0], sum[1]))) {
        store<true>(pair, at, p, x, word, kept);
      } else {
        store<false>(pair, at, p, x, word, kept);
      }
      if constexpr (kBytes) {
        each<kStates>(FASTOPT_INLINE(state) {
          constexpr int k = decltype(state)::value;
          for (int part = 0; part < 2; ++part) {
            const U32 of = kept.state[k][pair][part] = Byte<is_signed(k)>::kept(x[k][part]);
            tops[k] = Byte<is_signed(k)>::larger(tops[k], of);
          }
        });
      }
    });
    for (int k = 0; k < kStates; ++k) kept.tops[k] = tops[k];
  }

  // What is not of bytes.
  template <bool kCareful>
  [[gnu::always_inline]] void store(int pair, int64_t at, const U32* p, const U32 (*x)[2],
                                    const U32* word, Kept& kept) const {
    constexpr bool kNoisy = kStored<Weight>.rounds != Rounds::nearest;
    U32 round[2];
    for (int part = 0; part < 2; ++part) {
      round[part] = noise<Weight::kNoise>(kStored<Weight>.rounds, word[part]);
    }
    const Words rest =
        Weight::template store<kInOrder, kNoisy, kCareful>(plane<Weight::kBytes>(0, at), p, round);
    if constexpr (Weight::kRest == 1) kept.rest[pair] = rest;
    if constexpr (Weight::kRest == 2) store_words<kInOrder>(plane<2>(1, at), rest);
    if constexpr (!kBytes) {
      each<kStates>(FASTOPT_INLINE(state) {
        constexpr int k = decltype(state)::value;
        for (int part = 0; part < 2; ++part) round[part] = noise<16>(rounds(k), word[part]);
        Bfloat16::store<kInOrder, true, kCareful>(plane<2>(3 + k, at), x[k], round);
      });
    }
  }

  [[gnu::always_inline]] void encode_block(int64_t i, Kept& kept) const {
    if constexpr (Weight::kRest == 1) {
      for (int pair = 0; pair < kPairs; pair += 2) {
        char* const to = plane<1>(1, i + pair * kPair);
        store_bytes<kInOrder>(to, kept.rest[pair], kept.rest[pair + 1]);
      }
    }
    if constexpr (kBytes) {
      each<kStates>(FASTOPT_INLINE(state) {
        constexpr int k = decltype(state)::value;
        ask<kPairs + k>(i);
        encode_codes<is_signed(k), kInOrder, true>(kept.state[k], kept.tops[k], kept.word,
                                                   plane<1>(3 + k, i), scales_[k] + i / kBlock);
      });
    }
  }

  template <int kSize>
  char* plane(int which, int64_t at) const {
    return planes_[which] + at * kSize;
  }

  // Asks for what is to come, spread over the work on a block: each cache line once, of which a
  // plane has as many a block as it has bytes a number. In bursts, by the plane, the step with
  // 16-bit states took 17.7 ns per 16 elements, so 14.7 (64M elements, AVX-512); with all of them
  // in the first pass, that with 8-bit states 16.3 in place of 14.8.
  static constexpr int kSlots = kPairs + (kBytes ? kStates : 0);
  template <int kSlot>
  [[gnu::always_inline]] void ask(int64_t i) const {
    ask_plane<Weight::kBytes, kSlot>(0, i);
    ask_plane<Weight::kRest, kSlot>(1, i);
    ask_plane<Grad::kBytes, kSlot>(2, i);
    each<kStates>(
        FASTOPT_INLINE(state) { ask_plane<kStateBytes, kSlot>(3 + decltype(state)::value, i); });
  }
  template <int kSize, int kSlot>
  [[gnu::always_inline]] void ask_plane(int which, int64_t i) const {
    each<kSize>(FASTOPT_INLINE(line) {
      constexpr int n = decltype(line)::value;
      if constexpr ((2 * n + 1) * kSlots / (2 * kSize) == kSlot) {
        __builtin_prefetch(plane<kSize>(which, i + kAheadElements) + 64 * n);
      }
    });
  }

  const Update update_;
  const Noise<kInOrder> noise_;
  const uint32_t element_;
  const bool maximize_;
  char* planes_[3 + kStates];  // the parameter's two, the gradient's, those of the states
  char* scales_[kStates];
};

// The blocks of a run by the first of the kernels that fits; how many elements that was.
template <const Rule& kRule, int kVariant, class Variant, class... Of>
int64_t run_fused(List<Of...>, const CompactRun& run, const double* scalars, const Passes& passes) {
  const bool done = ((Fused<kRule, kVariant, Variant, Of>::fits(run) &&
                      (Fused<kRule, kVariant, Variant, Of>::kernel(run, scalars, passes), true)) ||
                     ...);
  return done ? run.count / kBlock * kBlock : 0;
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
