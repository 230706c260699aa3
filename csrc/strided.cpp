// Parameters that are not one contiguous run: their layout, then walking, clearing and updating
// them through it.
#include <algorithm>
#include <cstring>

#include "batch.h"

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
                   int64_t count, int64_t bytes) {
  const auto as = [&](auto type) {
    using T = decltype(type);
    copy_strided(reinterpret_cast<T*>(to), to_stride, reinterpret_cast<const T*>(from), from_stride,
                 count);
  };
  if (bytes == 2) return as(uint16_t{});
  if (bytes == 4) return as(uint32_t{});
  return as(uint64_t{});
}

// What add_layout() wrote.
struct Layout {
  const int64_t* at;
  int64_t dims() const { return at[0]; }
  int64_t size(int64_t d) const { return at[1 + d * (1 + kMaxStreams)]; }
  int64_t stride(int64_t d, int k) const { return at[2 + d * (1 + kMaxStreams) + k]; }
};

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
  const auto inner = [](const Dim& a, const Dim& b) { return a.stride[0] < b.stride[0]; };
  for (int d = 0; d < p.ndim; ++d) {
    if (p.shape[d] == 1) continue;
    Dim dim{p.shape[d], {}};
    for (int k = 0; k < count; ++k) dim.stride[k] = views[k].strides[d] * width;
    Dim* const at = std::upper_bound(dims, dims + n, dim, inner);
    std::move_backward(at, dims + n, dims + n + 1);
    *at = dim;
    ++n;
  }
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

// Call visit(run, offset) for each run of the innermost dimension in [from, to).
template <class Visit>
void Batch::walk(const Entry& entry, int64_t from, int64_t to, const Visit& visit) const {
  const Layout layout{layouts_.data() + entry.layout};
  for (int64_t at = from; at < to;) {
    Run run = entry.run;
    run.dtypes = entry.dtypes;
    int64_t rest = at;
    for (int64_t d = 0; d < layout.dims(); ++d) {
      const int64_t index = rest % layout.size(d);
      rest /= layout.size(d);
      for (int k = 0; k < entry.stream_count; ++k) {
        run.streams[k] += index * layout.stride(d, k) * entry.bytes(k);
      }
    }
    run.count = std::min(layout.size(0) - at % layout.size(0), to - at);
    visit(run, at - from);
    at += run.count;
  }
}

void Batch::clear_gradient(const Entry& entry) const {
  if (entry.run.count == 0) return;  // the address of nothing may be null
  if (entry.layout < 0) {
    std::memset(entry.run.streams[1], 0, size_t(entry.run.count * entry.bytes(1)));
    return;
  }
  const int64_t stride = Layout{layouts_.data() + entry.layout}.stride(0, 1);
  const char zero[sizeof(double)] = {};
  walk(entry, 0, entry.run.count, [&](const Run& run, int64_t) {
    copy_elements(run.streams[1], stride, zero, 0, run.count, entry.bytes(1));
  });
}

// Between streams of one dtype.
void Batch::copy_stream(const Entry& entry, int from, int to) const {
  if (entry.run.count == 0) return;
  const int64_t bytes = entry.bytes(from);
  if (entry.layout < 0) {
    std::memcpy(entry.run.streams[to], entry.run.streams[from], size_t(entry.run.count * bytes));
    return;
  }
  const Layout layout{layouts_.data() + entry.layout};
  walk(entry, 0, entry.run.count, [&](const Run& run, int64_t) {
    copy_elements(run.streams[to], layout.stride(0, to), run.streams[from], layout.stride(0, from),
                  run.count, bytes);
  });
}

// One stream's elements [from, to), made contiguous.
void Batch::gather(const Entry& entry, int stream, int64_t from, int64_t to, char* out) const {
  const int64_t stride = Layout{layouts_.data() + entry.layout}.stride(0, stream);
  const int64_t bytes = entry.bytes(stream);
  walk(entry, from, to, [&](const Run& run, int64_t offset) {
    copy_elements(out + offset * bytes, 1, run.streams[stream], stride, run.count, bytes);
  });
}

// A run that is long and contiguous in every stream is updated where it lies; anything else is
// gathered into contiguous scratch, updated by the very same kernel, and scattered back.
void Batch::update_strided(const Entry& entry, Sweep sweep, int64_t begin, int64_t end,
                           double* sums) const {
  const Layout layout{layouts_.data() + entry.layout};
  const bool measures = sweep == Sweep::measure;
  const Kernel kernel = measures ? entry.measure : entry.kernel;
  const double* const numbers = scalars(entry);
  const Passes& passes = groups_[entry.group].passes;

  bool in_place = layout.size(0) >= kMinRun;
  for (int k = 0; k < entry.stream_count; ++k) in_place &= layout.stride(0, k) == 1;
  if (in_place) {
    return walk(entry, begin, end, [&](Run run, int64_t) {
      run.sums = sums;
      kernel(&run, 1, numbers, passes);
    });
  }

  alignas(64) char scratch[kMaxStreams][kGather * sizeof(double)];
  Run gathered;
  gathered.sums = sums;
  gathered.dtypes = entry.dtypes;
  for (int k = 0; k < entry.stream_count; ++k) gathered.streams[k] = scratch[k];
  for (int64_t at = begin; at < end; at += kGather) {
    const int64_t stop = std::min(at + kGather, end);
    gathered.count = stop - at;
    for (int k = 0; k < entry.stream_count; ++k) gather(entry, k, at, stop, scratch[k]);
    kernel(&gathered, 1, numbers, passes);
    if (measures) continue;
    walk(entry, at, stop, [&](const Run& run, int64_t offset) {
      for (int k = 0; k < entry.stream_count; ++k) {
        if (k == 1 && !passes.writes_grads()) continue;  // gradients are only read
        const int64_t bytes = entry.bytes(k);
        copy_elements(run.streams[k], layout.stride(0, k), scratch[k] + offset * bytes, 1,
                      run.count, bytes);
      }
    });
  }
}

}  // namespace fastopt
