// A run of streams in any formats, by turns of whole blocks: opened as float32, closed in these.
#pragma once

#include "../kernels.h"
#include "codecs.h"

namespace fastopt::FASTOPT_ISA {
namespace {

class Turns {
 public:
  Turns(const CompactRun& run, int streams) : run_(run), streams_(streams) {
    for (int k = 0; k < streams; ++k) {
      const CompactStream& from = run.streams[k];
      streams_at_[k] = from;
      if (from.stored.rounds != Rounds::nearest && from.stored.word >= words_used_) {
        words_used_ = from.stored.word + 1;
      }
    }
  }

  // Goes on to the next turn and gives its length, or zero. What is left of the run in the end,
  // less than a block, is copied, and zeros fill it up.
  int64_t next() {
    begin_ += length_;
    left_ = run_.count - begin_;
    if (left_ <= 0) return 0;
    for (int k = 0; k < streams_; ++k) {
      CompactStream& s = streams_at_[k];
      s.first += first_bytes(s.stored.format, length_);
      s.second += second_bytes(s.stored.format, length_);
    }
    length_ = is_tail() ? kBlock : left_ < kTurn ? left_ / kBlock * kBlock : kTurn;
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
    return length_;
  }

  // The number of a run's first element in this turn, or where the last one ended.
  int64_t begin() const { return begin_; }

  // A stream's numbers: where they lie, if they are float32, else in scratch.
  float* open(int k) {
    const CompactStream& s = streams_at_[k];
    if (s.stored.format == Format::float32) return reinterpret_cast<float*>(s.first);
    decode_turn(s.stored.format, s.first, s.second, room_[k], length_);
    return room_[k];
  }

  // What an update has made of the zeros behind the end: they count in no maximum and no sum.
  void clear_rest(float* numbers) const {
    if (rarely(is_tail())) {
      __builtin_memset(numbers + left_, 0, (kBlock - left_) * sizeof(float));
    }
  }

  // The noise of this turn, before what rounds by it is closed.
  void draw() {
    const auto element = uint32_t(run_.element + uint64_t(begin_));
    for (int w = 0; w < words_used_; ++w) fill_words(run_.keys[w], element, words_[w], length_);
  }

  void close(int k, const float* numbers) {
    const CompactStream& s = streams_at_[k];
    if (s.stored.format == Format::float32) return;
    encode_turn(s.stored, numbers, words_[s.stored.word], s.first, s.second, length_);
  }

  void zero(int k) {
    const CompactStream& s = streams_at_[k];
    __builtin_memset(s.first, 0, first_bytes(s.stored.format, length_));
  }

  // Where this was the tail: its streams, but for a gradient that is only read.
  void put_back(bool gradient) {
    if (!is_tail()) return;
    for (int k = 0; k < streams_; ++k) {
      if (k == 1 && !gradient) continue;
      const CompactStream& to = run_.streams[k];
      const Format format = to.stored.format;
      copy(to.first + first_bytes(format, begin_), tail_[k][0], first_bytes(format, left_));
      copy(to.second + second_bytes(format, begin_), tail_[k][1], second_bytes(format, left_));
    }
  }

 private:
  bool is_tail() const { return left_ < kBlock; }

  // Not of nothing: its address may be null.
  static void copy(char* to, const char* from, int64_t bytes) {
    if (bytes) __builtin_memcpy(to, from, bytes);
  }

  const CompactRun& run_;
  const int streams_;
  CompactStream streams_at_[kMaxStreams];
  int64_t begin_ = 0, length_ = 0, left_ = 0;
  int words_used_ = 0;
  alignas(64) uint32_t words_[kWords][kTurn];
  alignas(64) float room_[kMaxStreams][kTurn];
  alignas(64) char tail_[kMaxStreams][2][kBlock * sizeof(float)];
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
