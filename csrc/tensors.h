// PyObject -> checked view of a CPU tensor's memory, through torch's DLPack C exchange table.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dtypes.h"

namespace fastopt {

// A tensor that the engine will not update, and why; nothing has been written when it is thrown.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where memory is: DLPack's type and number, pinned memory counting as the CPU's.
struct Device {
  int type = 0;
  int id = 0;
  bool on_cpu() const;
  bool operator==(const Device& other) const { return type == other.type && id == other.id; }
};

// Borrowed: valid while the tensor is alive and keeps its storage.
struct View {
  char* data;
  Device device;
  int64_t numel;  // of the tensor's own elements
  Dtype dtype;    // of the real numbers: a complex element is two of them
  bool complex;
  int ndim;
  const int64_t* shape;
  const int64_t* strides;  // in the tensor's own elements
};

// Find the exchange table and the types that may be read; once, when the module is imported.
// Throws std::runtime_error where this torch does not publish the table.
void bind_torch();

// Find DTensor's slot for its local shard, read without running Python.
void bind_shards(const pybind11::object& dtensor);

// The tensor whose memory stands behind an object, borrowed: a plain torch.Tensor or Parameter
// stands for itself, a DTensor for its local shard, which may be another at every step; null for
// all else, such as a subclass that torch may dispatch elsewhere. This is the one place that knows.
PyObject* memory_of(PyObject* object);

// What `tensor` is in memory. Throws Refused where there is none, or its dtype is not known; the
// integers of compact formats are only where `planes`.
void read_anywhere(PyObject* tensor, View* view, bool planes = false);

// The same, of a tensor whose memory the host may follow: throws Refused where it is elsewhere.
void read(PyObject* tensor, View* view);

// Whether this stands for a tensor whose memory is not the CPU's.
bool is_on_device(PyObject* object);

// A new reference to the .grad of a plain tensor: None, or a tensor.
PyObject* grad_of(PyObject* param);

// While one exists, and nothing else does, no Python code runs: the GIL is held, and the garbage
// collector, which any allocation may start before Python 3.12, calls no finaliser. So what is
// borrowed from a container stays alive. Reading plain tensors and their .grad runs none either.
class NoCollection {
 public:
  NoCollection() : was_on_(PyGC_Disable()) {}
  NoCollection(const NoCollection&) = delete;
  NoCollection& operator=(const NoCollection&) = delete;
  ~NoCollection() {
    if (was_on_) PyGC_Enable();
  }

 private:
  int was_on_;
};

// Throws Refused where the tensor is a lazy conjugate or negation, which its memory does not show.
// Costs two Python calls, so only the layouts that can be such a view are asked: see may_be_lazy.
void refuse_lazy_views(PyObject* tensor);

bool contiguous(const View& view);
bool same_shape(const View& a, const View& b);

// The device and the shape are the parameter's, and both are real, or both complex.
bool fits(const View& view, const View& param);

// Expanded memory: several elements in one place, which an update would hit several times.
bool overlaps_itself(const View& view);

// Whether it is what a step count or another number must be; what is wrong with it where it is not.
bool one_number(const View& view);
std::string not_one_number(const View& view);

// The first byte and the one behind the last.
using Extent = std::pair<char*, char*>;
Extent extent(const View& view);

// Whether an extent reaches one of several, which are sorted and apart from one another.
bool meets(const std::vector<Extent>& sorted, const Extent& found);

// Whether two tensors of one shape whose extents meet share no element all the same, as the left
// and the right columns of a matrix.
bool interleaved(const View& a, const View& b);

// Of the tensor's own elements.
inline int element_bytes(const View& view) {
  return kElementBytes[int(view.dtype)] * (view.complex ? 2 : 1);
}

// A conjugate is complex; a negation is a slice of one, a run of numbers only where it is one
// number.
inline bool may_be_lazy(const View& view) {
  return view.complex || view.numel == 1 || !contiguous(view);
}

// An owning C++ handle on a tensor. While one exists, torch reads the tensor in 20 ns instead of
// 46 (measured with 2.13): otherwise the Python object is its only owner and every borrowed read
// pays for reference counting under the GIL.
class Handle {
 public:
  explicit Handle(PyObject* tensor);
  Handle(Handle&& other) noexcept : managed_(other.managed_) { other.managed_ = nullptr; }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  Handle& operator=(Handle&&) = delete;
  ~Handle();

 private:
  void* managed_;
};

// torch's names of the dtypes that the engine updates.
constexpr const char* kDtypeNames[] = {"float32", "float64",   "bfloat16",
                                       "float16", "complex64", "complex128"};

std::string describe_shape(const View& view);
std::string describe(const Device& device);
const char* dtype_name(const View& view);

}  // namespace fastopt
