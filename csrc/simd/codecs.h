// Streams by the turn, whatever their format: widened to float32 and coded again.
#pragma once

#include "halves.h"

namespace fastopt::FASTOPT_ISA {
namespace {

// So many numbers of every stream a turn, or fewer, of whole blocks: their scratch stays in the L1
// cache, and what is switched by a format, or called out of line, is so once for all of them. AdamW
// with 8-bit states took 23.1, 21.2 and 20.8 ns per 16 elements for turns of 64, 128 and 256 (AVX2
// on a Xeon, in the caches; 18.2, 17.2 and 16.5 with AVX-512).
constexpr int kTurn = 256;
static_assert(kTurn % kBlock == 0);
// How far ahead a stream is asked for, in elements, so that all of a block's arrive together: over
// 16M elements the prototype of a step with 8-bit states took 24.8 ns per 16 without, 15.9 so, and
// no less than without where a block's were asked for in one burst (AVX-512 on a Xeon).
constexpr int64_t kAheadElements = 512;
constexpr int kPair = 2 * kLanes32;  // numbers that a register of words holds
constexpr int kPairs = int(kBlock) / kPair;

[[gnu::noinline]] inline void fill_words(uint64_t key, uint32_t element, uint32_t* __restrict out,
                                         int64_t count) {
  const Noise<true> noise(key);
  const U32 begin = noise.start(element);
  U32 at = begin;
  for (int64_t i = 0; i < count; i += kLanes32) {
    store_vector(out + i, noise(at, 0));
    at += kLanes32 * noise.kWeyl;
  }
}

template <class Codec>
[[gnu::noinline]] void decode(const char* __restrict first, const char* __restrict second,
                              float* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; i += kPair) {
    __builtin_prefetch(first + (i + kAheadElements) * Codec::kBytes);
    if (Codec::kRest) __builtin_prefetch(second + (i + kAheadElements) * Codec::kRest);
    U32 x[2];
    Codec::template load<true>(first + i * Codec::kBytes, second + i * Codec::kRest, x);
    for (int k = 0; k < 2; ++k) store_vector(out + i + k * kLanes32, x[k]);
  }
}

template <class Codec, Rounds kRounds>
[[gnu::noinline]] void encode(const float* __restrict in, const uint32_t* __restrict words,
                              char* __restrict first, char* __restrict second, int64_t count) {
  constexpr bool kNoisy = kRounds != Rounds::nearest;
  for (int64_t i = 0; i < count; i += 2 * kPair) {
    Words rest[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t at = i + half * kPair;
      U32 x[2], round[2] = {};
      for (int k = 0; k < 2; ++k) {
        x[k] = load_vector<U32>(in + at + k * kLanes32);
        if constexpr (kNoisy) {
          round[k] = noise<Codec::kNoise>(kRounds, load_vector<U32>(words + at + k * kLanes32));
        }
      }
      char* const to = first + at * Codec::kBytes;
      rest[half] = rarely(any_nan((F32)x[0], (F32)x[1]))
                       ? Codec::template store<true, kNoisy, true>(to, x, round)
                       : Codec::template store<true, kNoisy, false>(to, x, round);
      if (Codec::kRest == 2) store_words<true>(second + 2 * at, rest[half]);
    }
    if (Codec::kRest == 1) store_bytes<true>(second + i, rest[0], rest[1]);
  }
}

template <bool kSigned>
[[gnu::noinline]] void decode_bytes(const char* __restrict first, const char* __restrict second,
                                    float* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; i += kBlock) {
    __builtin_prefetch(first + i + kAheadElements);
    const uint32_t e = uint8_t(second[i / kBlock]);
#pragma GCC unroll 8
    for (int64_t at = i; at < i + kBlock; at += kPair) {
      U32 x[2];
      Byte<kSigned>::decode(load_bytes<true>(first + at), e, x);
      for (int k = 0; k < 2; ++k) store_vector(out + at + k * kLanes32, x[k]);
    }
  }
}

// The numbers of a block, by pairs, once all of them are known: to codes, and their scale.
template <bool kSigned, bool kInOrder, bool kNoisy>
[[gnu::always_inline]] inline void encode_codes(U32 (*kept)[2], U32 tops, const U32 (*word)[2],
                                                char* first, char* second) {
  const uint32_t e = Byte<kSigned>::scale(tops);
  *second = char(e);
  if (rarely(e == 254)) {
#pragma GCC unroll 16
    for (int k = 0; k < 2 * kPairs; ++k)
      kept[k / 2][k % 2] = Byte<kSigned>::quiet(kept[k / 2][k % 2]);
  }
#pragma GCC unroll 8
  for (int k = 0; k < kPairs; k += 2) {
    store_bytes<kInOrder>(first + k * kPair,
                          Byte<kSigned>::template encode<kNoisy>(kept[k], e, word[k]),
                          Byte<kSigned>::template encode<kNoisy>(kept[k + 1], e, word[k + 1]));
  }
}

template <bool kSigned, bool kNoisy>
[[gnu::noinline]] void encode_bytes(const float* __restrict in, const uint32_t* __restrict words,
                                    char* __restrict first, char* __restrict second,
                                    int64_t count) {
  for (int64_t i = 0; i < count; i += kBlock) {
    U32 kept[kPairs][2], word[kPairs][2], tops{};
#pragma GCC unroll 16
    for (int k = 0; k < 2 * kPairs; ++k) {
      const int64_t at = i + k * kLanes32;
      kept[k / 2][k % 2] = Byte<kSigned>::kept(load_vector<U32>(in + at));
      tops = Byte<kSigned>::larger(tops, kept[k / 2][k % 2]);
      word[k / 2][k % 2] = load_vector<U32>(words + at);
    }
    encode_codes<kSigned, true, kNoisy>(kept, tops, word, first + i, second + i / kBlock);
  }
}

// Whole blocks: what is left of a run is copied first.
inline void decode_turn(Format format, const char* first, const char* second, float* out,
                        int64_t count) {
  switch (format) {
    case Format::float32:
      __builtin_memcpy(out, first, count * sizeof(float));
      return;
    case Format::bfloat16:
      return decode<Bfloat16>(first, second, out, count);
    case Format::float16:
      return decode<Float16>(first, second, out, count);
    case Format::signed8:
      return decode_bytes<true>(first, second, out, count);
    case Format::positive8:
      return decode_bytes<false>(first, second, out, count);
    case Format::split16:
      return decode<Split16>(first, second, out, count);
    case Format::split8:
      return decode<Split8>(first, second, out, count);
    case Format::rest16:
      return decode<Fixed<15, 2>>(first, second, out, count);
    case Format::rest8:
      return decode<Fixed<8, 1>>(first, second, out, count);
  }
}

inline void encode_turn(const Stored& stored, const float* in, const uint32_t* words, char* first,
                        char* second, int64_t count) {
  const bool noisy = stored.rounds != Rounds::nearest;
  switch (stored.format) {
    case Format::float32:
      __builtin_memcpy(first, in, count * sizeof(float));
      return;
    case Format::bfloat16:
      switch (stored.rounds) {
        case Rounds::nearest:
          return encode<Bfloat16, Rounds::nearest>(in, words, first, second, count);
        case Rounds::weight:
          return encode<Bfloat16, Rounds::weight>(in, words, first, second, count);
        case Rounds::positive:
          return encode<Bfloat16, Rounds::positive>(in, words, first, second, count);
        case Rounds::signed_:
          return encode<Bfloat16, Rounds::signed_>(in, words, first, second, count);
      }
      return;
    case Format::float16:
      return (noisy ? encode<Float16, Rounds::weight>
                    : encode<Float16, Rounds::nearest>)(in, words, first, second, count);
    case Format::signed8:
      return (noisy ? encode_bytes<true, true> : encode_bytes<true, false>)(in, words, first,
                                                                            second, count);
    case Format::positive8:
      return (noisy ? encode_bytes<false, true> : encode_bytes<false, false>)(in, words, first,
                                                                              second, count);
    case Format::split16:
      return encode<Split16, Rounds::nearest>(in, words, first, second, count);
    case Format::split8:
      return (noisy ? encode<Split8, Rounds::weight>
                    : encode<Split8, Rounds::nearest>)(in, words, first, second, count);
    case Format::rest16:
      return encode<Fixed<15, 2>, Rounds::nearest>(in, words, first, second, count);
    case Format::rest8:
      return encode<Fixed<8, 1>, Rounds::nearest>(in, words, first, second, count);
  }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
