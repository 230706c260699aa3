// A run of compact streams, kTurn numbers a turn: opened as float32, closed in their formats.
#pragma once

#include "../kernels.h"
#include "codecs.h"

namespace fastopt::FASTOPT_ISA {
namespace {

// How far ahead a stream is asked for, in elements, so that all of a block's arrive together. Each
// cache line once, spread over the update: over 16M elements the prototype of a step with 8-bit
// states took 24.8 ns per 16 without, 15.9 so, and no less than without where a block's were asked
// for in one burst (AVX-512 on a Xeon).
constexpr int64_t kAheadElements = 512;

class Turns {
 public:
  Turns(const CompactRun& run, int streams) : run_(run), streams_(streams) {
    for (int k = 0; k < streams; ++k) {
      const CompactStream& from = run.streams[k];
      streams_at_[k] = from;
      ask_ahead(from.first, first_bytes(from.stored.format, kTurn), kTurn);
      // Scales are too few to ask for.
      const int64_t low = second_bytes(from.stored.format, kTurn);
      if (low >= kTurn) ask_ahead(from.second, low, kTurn);
      if (from.stored.rounds != Rounds::nearest && from.stored.word >= words_used_) {
        words_used_ = from.stored.word + 1;
      }
    }
  }

  // Goes on to the next turn, if there is one. What is left of the run, less than a turn, is
  // copied, and zeros fill it up.
  bool next() {
    if (++turn_ * kTurn >= run_.count) return false;
    left_ = run_.count - turn_ * kTurn;
    for (int k = 0; turn_ && k < streams_; ++k) {
      CompactStream& s = streams_at_[k];
      s.first += first_bytes(s.stored.format, kTurn);
      s.second += second_bytes(s.stored.format, kTurn);
    }
    if (is_tail()) {
      for (int k = 0; k < streams_; ++k) {
        CompactStream& s = streams_at_[k];
        __builtin_memset(tail_[k], 0, sizeof tail_[k]);
        copy(tail_[k][0], s.first, first_bytes(s.stored.format, left_));
        copy(tail_[k][1], s.second, second_bytes(s.stored.format, left_));
        s.first = tail_[k][0];
        s.second = tail_[k][1];
      }
    }
    return true;
  }

  // The number of a run's first element in this turn.
  int64_t begin() const { return turn_ * kTurn; }

  // A stream's numbers: where they lie, if they are float32, else in scratch.
  float* open(int k) {
    const CompactStream& s = streams_at_[k];
    if (s.stored.format == Format::float32) return reinterpret_cast<float*>(s.first);
    decode_turn(s.stored.format, s.first, s.second, room_[k]);
    return room_[k];
  }

  // Asks for the part of what is to come that belongs to the vector at `j` of this turn.
  void ask(int j) const {
    const int end = lines_ * (j / kLanes32 + 1) / (kTurn / kLanes32);
    for (int n = lines_ * (j / kLanes32) / (kTurn / kLanes32); n < end; ++n) {
      __builtin_prefetch(ahead_[n] + turn_ * step_[n]);
    }
  }

  // What an update has made of the zeros behind the end: they count in no maximum and no sum.
  void clear_rest(float* numbers) const {
    if (rarely(is_tail())) {
      __builtin_memset(numbers + left_, 0, (kTurn - left_) * sizeof(float));
    }
  }

  // The noise of this turn, before what rounds by it is closed.
  void draw() {
    const uint64_t element = run_.element + uint64_t(begin());
    for (int w = 0; w < words_used_; ++w) fill_words(run_.keys[w], uint32_t(element), words_[w]);
  }

  void close(int k, const float* numbers) {
    const CompactStream& s = streams_at_[k];
    if (s.stored.format == Format::float32) return;
    encode_turn(s.stored, numbers, words_[s.stored.word], s.first, s.second);
  }

  void zero(int k) {
    const CompactStream& s = streams_at_[k];
    __builtin_memset(s.first, 0, first_bytes(s.stored.format, kTurn));
  }

  // Where this was the tail: its streams, but for a gradient that is only read.
  void put_back(bool gradient) {
    if (!is_tail()) return;
    for (int k = 0; k < streams_; ++k) {
      if (k == 1 && !gradient) continue;
      const CompactStream& to = run_.streams[k];
      const Format format = to.stored.format;
      copy(to.first + first_bytes(format, begin()), tail_[k][0], first_bytes(format, left_));
      copy(to.second + second_bytes(format, begin()), tail_[k][1], second_bytes(format, left_));
    }
  }

 private:
  static constexpr int kLines = kMaxStreams * (4 + 2) * kTurn / 64;

  bool is_tail() const { return left_ < kTurn; }

  // Not of nothing: its address may be null.
  static void copy(char* to, const char* from, int64_t bytes) {
    if (bytes) __builtin_memcpy(to, from, bytes);
  }

  void ask_ahead(const char* plane, int64_t bytes, int64_t elements) {
    for (int64_t line = 0; line < bytes; line += 64) {
      step_[lines_] = bytes;
      ahead_[lines_++] = plane + kAheadElements * bytes / elements + line;
    }
  }

  const CompactRun& run_;
  const int streams_;
  CompactStream streams_at_[kMaxStreams];
  int64_t turn_ = -1, left_ = 0;
  int words_used_ = 0, lines_ = 0;
  const char* ahead_[kLines];
  int64_t step_[kLines];
  alignas(64) uint32_t words_[kWords][kTurn];
  alignas(64) float room_[kMaxStreams][kTurn];
  alignas(64) char tail_[kMaxStreams][2][kTurn * sizeof(float)];
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
