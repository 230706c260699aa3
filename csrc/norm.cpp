// The norm of all gradients of a batch: every block of them, then their sums.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "batch.h"
#include "parallel.h"

namespace fastopt {

// Blocks are summed in any order and by any thread; then all sums of a team in the order of the
// parameters, again by halving, so that no rounding is left to chance.
Batch::Squares Batch::measure(int threads, int teams) {
  int64_t blocks = 0, total = 0;
  block_ends_.clear();
  for (const Entry& entry : entries_) {
    total += entry.run.count;
    block_ends_.push_back(blocks += (entry.run.count + kNormBlock - 1) / kNormBlock);
  }
  square_sums_.resize(blocks);
  std::atomic<bool> finite = true;
  parallel(useful_threads(total, threads), [&](int64_t rank, int64_t size) {
    if (!measure_share(blocks * rank / size, blocks * (rank + 1) / size)) finite = false;
  });
  Squares squares{{}, finite};
  for (int team = 0; team < teams; ++team) {
    double sum[kNormBlock] = {};
    int64_t block = 0, place = 0;
    for (size_t i = 0; i < entries_.size(); ++i) {
      const bool counts = entries_[i].team == team;
      for (; block < block_ends_[i]; ++block) {
        if (counts) sum[place++ % kNormBlock] += square_sums_[block];
      }
    }
    for (int half = kNormBlock / 2; half >= 1; half /= 2) {
      for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    }
    squares.sums.push_back(sum[0]);
  }
  return squares;
}

double Batch::clip(double square_sum) {
  double norm = std::sqrt(square_sum);
  for (Shared& group : groups_) {
    Passes& passes = group.passes;
    if (passes.unscale)
      norm = std::sqrt(square_sum) / passes.grad_scale;  // one scale for all groups
    // As torch.nn.utils.clip_grad_norm_; NaN stays NaN.
    const double factor = passes.max_grad_norm / (norm + 1e-6);
    if (passes.clip_norm) passes.clip_factor = factor > 1 ? 1 : factor;
  }
  return norm;
}

// The blocks [from, to) of the norm.
bool Batch::measure_share(int64_t from, int64_t to) {
  alignas(64) char scratch[kNormBlock * sizeof(double)];
  bool finite = true;
  size_t i = std::upper_bound(block_ends_.begin(), block_ends_.end(), from) - block_ends_.begin();
  for (; i < entries_.size() && from < to; ++i) {
    const Entry& entry = entries_[i];
    const auto square_sums = kernels_->square_sums[int(entry.dtypes[1])];
    const int64_t first = i ? block_ends_[i - 1] : 0;
    const int64_t begin = (from - first) * kNormBlock;
    const int64_t blocks_end = std::min(to, block_ends_[i]);
    const int64_t end = std::min((blocks_end - first) * kNormBlock, entry.run.count);
    double* sums = square_sums_.data() + from;
    if (entry.layout < 0) {
      const char* grad = entry.run.streams[1] + begin * entry.bytes(1);
      finite &= square_sums(grad, end - begin, sums);
    } else {
      for (int64_t at = begin; at < end; at += kNormBlock) {
        const int64_t stop = std::min(at + kNormBlock, end);
        gather(entry, 1, at, stop, scratch);
        finite &= square_sums(scratch, stop - at, sums++);
      }
    }
    from = blocks_end;
  }
  return finite;
}

}  // namespace fastopt
