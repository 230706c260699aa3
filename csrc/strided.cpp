// Parameters that are not one contiguous run: their layout, then updating them through it.
#include <algorithm>

#include "engine.h"

namespace fastopt {
namespace {

// Elements gathered at a time from a strided tensor; five streams of doubles fit in the L1 cache.
constexpr int64_t kGather = 256;
// Shorter contiguous runs (rows of a narrow slice) are cheaper gathered than called one by one.
constexpr int64_t kMinRun = 64;

template <class T>
void copy_strided(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i * to_stride] = from[i * from_stride];
}

void copy_elements(char* to, int64_t to_stride, const char* from, int64_t from_stride,
                   int64_t count, int bytes) {
  const auto as = [&](auto type) {
    using T = decltype(type);
    copy_strided(reinterpret_cast<T*>(to), to_stride, reinterpret_cast<const T*>(from), from_stride,
                 count);
  };
  if (bytes == 2) return as(uint16_t{});
  if (bytes == 4) return as(uint32_t{});
  return as(uint64_t{});
}

}  // namespace

// A strided layout in layouts_: the number of dimensions, then from the innermost out, for each
// its size and the stride of every stream, in real numbers. Dimensions that all streams cross
// without a jump are merged; -1 where a single dense run is left after all, as for channels_last.
int64_t Batch::add_layout(const View* views, int count) {
  const View& p = views[0];
  struct Dim {
    int64_t size;
    std::array<int64_t, kMaxStreams> stride;
  };
  Dim dims[65];
  int n = 0;
  const int64_t width = p.complex ? 2 : 1;
  for (int d = 0; d < p.ndim; ++d) {
    if (p.shape[d] == 1) continue;
    dims[n].size = p.shape[d];
    for (int k = 0; k < count; ++k) dims[n].stride[k] = views[k].strides[d] * width;
    ++n;
  }
  std::stable_sort(dims, dims + n,
                   [](const Dim& a, const Dim& b) { return a.stride[0] < b.stride[0]; });
  if (p.complex) {
    std::move_backward(dims, dims + n, dims + n + 1);
    dims[0].size = 2;
    dims[0].stride.fill(1);
    ++n;
  }
  int merged = 0;
  for (int d = 1; d < n; ++d) {
    bool joins = true;
    for (int k = 0; k < count; ++k) {
      joins &= dims[d].stride[k] == dims[merged].stride[k] * dims[merged].size;
    }
    if (joins) {
      dims[merged].size *= dims[d].size;
    } else {
      dims[++merged] = dims[d];
    }
  }
  n = n ? merged + 1 : 0;
  const auto unit = [&](const Dim& d) {
    return std::all_of(d.stride.begin(), d.stride.begin() + count,
                       [](int64_t s) { return s == 1; });
  };
  if (n == 0 || (n == 1 && unit(dims[0]))) return -1;
  const int64_t start = int64_t(layouts_.size());
  layouts_.push_back(n);
  for (int d = 0; d < n; ++d) {
    layouts_.push_back(dims[d].size);
    layouts_.insert(layouts_.end(), dims[d].stride.begin(), dims[d].stride.end());
  }
  return start;
}

// A run that is long and contiguous in every stream is updated where it lies; anything else is
// gathered into contiguous scratch, updated by the very same kernel, and scattered back.
void Batch::update_strided(const Entry& entry, int64_t begin, int64_t end) const {
  const int64_t* layout = layouts_.data() + entry.layout;
  const auto size = [&](int64_t d) { return layout[1 + d * (1 + kMaxStreams)]; };
  const auto stride = [&](int64_t d, int k) { return layout[2 + d * (1 + kMaxStreams) + k]; };
  const double* scalars = scalars_[entry.scalars].data();
  const Prologue& prologue = prologues_[entry.prologue];
  const int bytes = entry.element_bytes;

  // Call visit(run, offset) for each run of the innermost dimension in [from, to).
  const auto walk = [&](int64_t from, int64_t to, const auto& visit) {
    for (int64_t at = from; at < to;) {
      Run run = entry.run;
      int64_t rest = at;
      for (int64_t d = 0; d < layout[0]; ++d) {
        const int64_t index = rest % size(d);
        rest /= size(d);
        for (int k = 0; k < entry.stream_count; ++k) {
          run.streams[k] += index * stride(d, k) * bytes;
        }
      }
      run.count = std::min(size(0) - at % size(0), to - at);
      visit(run, at - from);
      at += run.count;
    }
  };

  bool in_place = size(0) >= kMinRun;
  for (int k = 0; k < entry.stream_count; ++k) in_place &= stride(0, k) == 1;
  if (in_place) {
    return walk(begin, end,
                [&](const Run& run, int64_t) { entry.kernel(&run, 1, scalars, prologue); });
  }

  alignas(64) char scratch[kMaxStreams][kGather * sizeof(double)];
  Run gathered;
  for (int k = 0; k < entry.stream_count; ++k) gathered.streams[k] = scratch[k];
  for (int64_t at = begin; at < end; at += kGather) {
    const int64_t stop = std::min(at + kGather, end);
    gathered.count = stop - at;
    walk(at, stop, [&](const Run& run, int64_t offset) {
      for (int k = 0; k < entry.stream_count; ++k) {
        copy_elements(scratch[k] + offset * bytes, 1, run.streams[k], stride(0, k), run.count,
                      bytes);
      }
    });
    entry.kernel(&gathered, 1, scalars, prologue);
    walk(at, stop, [&](const Run& run, int64_t offset) {
      for (int k = 0; k < entry.stream_count; ++k) {
        if (k == 1 && !prologue.unscale) continue;  // gradients are only read
        copy_elements(run.streams[k], stride(0, k), scratch[k] + offset * bytes, 1, run.count,
                      bytes);
      }
    });
  }
}

}  // namespace fastopt
