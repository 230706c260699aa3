// Binding to torch, then reading one tensor, then words for messages.
#include "tensors.h"

#include FASTOPT_DLPACK_HEADER

#include <pybind11/pybind11.h>

#include <structmember.h>

#include <algorithm>
#include <numeric>

namespace py = pybind11;

namespace fastopt {
namespace {

const DLPackExchangeAPI* exchange = nullptr;
PyTypeObject* tensor_type = nullptr;
PyTypeObject* parameter_type = nullptr;
PyGetSetDef* grad_property = nullptr;
PyTypeObject* dtensor_type = nullptr;  // once torch.distributed.tensor has been imported
Py_ssize_t local_tensor_at = 0;        // in such an object

// The pending Python error as text, cleared; without the C++ stack that torch puts behind it.
std::string take_python_error() {
  const py::error_already_set error;
  const std::string text =
      error.value() ? py::str(error.value()).cast<std::string>() : error.what();
  return text.substr(0, text.find("\nException raised from"));
}

Refused unreadable() { return Refused("cannot be read (" + take_python_error() + ")"); }

// The distance in elements between the first and the last element of a view.
int64_t span(const View& view) {
  int64_t last = 0;
  for (int d = 0; d < view.ndim; ++d) last += (view.shape[d] - 1) * view.strides[d];
  return last;
}

Device device_of(const DLTensor& tensor) {
  const auto type = tensor.device.device_type;
  if (type == kDLCPU || type == kDLCUDAHost) return {kDLCPU, 0};
  return {type, tensor.device.device_id};
}

}  // namespace

bool Device::on_cpu() const { return type == kDLCPU; }

bool is_on_device(PyObject* object) {
  PyObject* const tensor = memory_of(object);
  if (!tensor) return false;
  DLTensor t;
  if (exchange->dltensor_from_py_object_no_sync(tensor, &t) != 0) {
    throw unreadable();
  }
  return !device_of(t).on_cpu();
}

void bind_torch() {
  const py::object tensor = py::module_::import("torch").attr("Tensor");
  const py::object parameter = py::module_::import("torch.nn").attr("Parameter");
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    throw std::runtime_error("this torch does not publish its DLPack C exchange table");
  }
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* api = static_cast<const DLPackExchangeAPI*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!api) throw py::error_already_set();
  if (api->header.version.major != DLPACK_MAJOR_VERSION) {
    throw std::runtime_error("this torch speaks DLPack " +
                             std::to_string(api->header.version.major) + ", not " +
                             std::to_string(DLPACK_MAJOR_VERSION));
  }
  // The property's C getter, called directly: the attribute look-up of a Parameter costs as much
  // again as the getter itself, once per parameter and step.
  const py::object grad = tensor.attr("grad");
  if (Py_TYPE(grad.ptr()) != &PyGetSetDescr_Type) {
    throw std::runtime_error("torch.Tensor.grad is no longer a C property");
  }
  grad_property = reinterpret_cast<PyGetSetDescrObject*>(grad.ptr())->d_getset;
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.ptr());
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter.ptr());
  exchange = api;
}

void bind_shards(const py::object& dtensor) {
  const py::object slot = dtensor.attr("_local_tensor");
  if (Py_TYPE(slot.ptr()) != &PyMemberDescr_Type) {
    throw std::runtime_error("DTensor._local_tensor is no longer a slot");
  }
  local_tensor_at = reinterpret_cast<PyMemberDescrObject*>(slot.ptr())->d_member->offset;
  dtensor_type = reinterpret_cast<PyTypeObject*>(dtensor.inc_ref().ptr());
}

PyObject* memory_of(PyObject* object) {
  const PyTypeObject* const type = Py_TYPE(object);
  if (type == tensor_type || type == parameter_type) return object;
  if (type != dtensor_type || !dtensor_type) return nullptr;
  PyObject* const local =
      *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + local_tensor_at);
  return local && Py_TYPE(local) == tensor_type ? local : nullptr;
}

PyObject* grad_of(PyObject* param) {
  PyObject* grad = grad_property->get(param, grad_property->closure);
  if (!grad) throw py::error_already_set();
  return grad;
}

void read_anywhere(PyObject* object, View* view, bool planes) {
  PyObject* const tensor = memory_of(object);
  if (!tensor) {
    throw Refused(std::string("is a ") + Py_TYPE(object)->tp_name +
                  ", not a plain torch.Tensor or torch.nn.Parameter");
  }
  DLTensor t;
  if (exchange->dltensor_from_py_object_no_sync(tensor, &t) != 0) throw unreadable();
  view->device = device_of(t);
  view->complex = t.dtype.code == kDLComplex;
  const int bits = view->complex ? t.dtype.bits / 2 : t.dtype.bits;
  const bool floating = t.dtype.code == kDLFloat || (view->complex && bits >= 32);
  if (floating && bits == 32) {
    view->dtype = Dtype::float32;
  } else if (t.dtype.code == kDLBfloat && bits == 16) {
    view->dtype = Dtype::bfloat16;
  } else if (floating && bits == 64) {
    view->dtype = Dtype::float64;
  } else if (floating && bits == 16) {
    view->dtype = Dtype::float16;
  } else if (planes && t.dtype.code == kDLUInt && bits == 8) {
    view->dtype = Dtype::uint8;
  } else if (planes && t.dtype.code == kDLInt && (bits == 8 || bits == 16)) {
    view->dtype = bits == 8 ? Dtype::int8 : Dtype::int16;
  } else {
    std::string allowed;
    for (const char* name : kDtypeNames) allowed += std::string(allowed.empty() ? "" : ", ") + name;
    throw Refused("has a dtype other than " + allowed);
  }
  view->data = static_cast<char*>(t.data) + t.byte_offset;
  view->ndim = t.ndim;
  view->shape = t.shape;
  view->strides = t.strides;
  view->numel = 1;
  for (int d = 0; d < t.ndim; ++d) view->numel *= t.shape[d];
}

void read(PyObject* tensor, View* view) {
  read_anywhere(tensor, view);
  if (!view->device.on_cpu()) throw Refused("is not on the CPU");
}

bool contiguous(const View& view) {
  int64_t expected = 1;
  for (int d = view.ndim - 1; d >= 0; --d) {
    if (view.shape[d] != 1 && view.strides[d] != expected) return false;
    expected *= view.shape[d];
  }
  return true;
}

bool same_shape(const View& a, const View& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool fits(const View& view, const View& param) {
  return view.complex == param.complex && view.device == param.device && same_shape(view, param);
}

bool overlaps_itself(const View& view) { return view.numel > 1 && span(view) + 1 < view.numel; }

bool meets(const std::vector<Extent>& sorted, const Extent& found) {
  const auto behind =
      std::lower_bound(sorted.begin(), sorted.end(), found.second,
                       [](const Extent& extent, const char* end) { return extent.first < end; });
  return found.first != found.second && behind != sorted.begin() &&
         (behind - 1)->second > found.first;
}

Extent extent(const View& view) {
  return {view.data, view.numel ? view.data + (span(view) + 1) * element_bytes(view) : view.data};
}

bool one_number(const View& view) {
  return view.numel == 1 && !view.complex && kElementBytes[int(view.dtype)] >= 4;
}

std::string not_one_number(const View& view) {
  return "has shape " + describe_shape(view) + " and dtype " + dtype_name(view) +
         "; it must be one float32 or float64 number";
}

bool interleaved(const View& a, const View& b) {
  if (!same_shape(a, b) || a.dtype != b.dtype || a.complex != b.complex) return false;
  // Dimensions that both cross without a jump make one run; every run of either begins at a
  // multiple of `step` from that tensor's first.
  int64_t run = 1, step = 0;
  std::vector<int> jumps;
  for (int d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != 1) jumps.push_back(d);
  }
  const auto crossed = [&](int d) { return a.strides[d] == run && b.strides[d] == run; };
  for (auto at = jumps.begin();
       (at = std::find_if(jumps.begin(), jumps.end(), crossed)) != jumps.end();) {
    run *= a.shape[*at];
    jumps.erase(at);
  }
  for (const int d : jumps) step = std::gcd(step, std::gcd(a.strides[d], b.strides[d]));
  if (step == 0) return false;
  const int64_t bytes = element_bytes(a);
  const int64_t apart = (b.data - a.data) % (step * bytes);
  const int64_t offset = apart < 0 ? apart + step * bytes : apart;
  return offset >= run * bytes && step * bytes - offset >= run * bytes;
}

void refuse_lazy_views(PyObject* tensor) {
  for (const char* query : {"is_conj", "is_neg"}) {
    if (py::handle(tensor).attr(query)().cast<bool>()) {
      throw Refused(std::string("is a lazy view (") + query + "() is true)");
    }
  }
}

Handle::Handle(PyObject* tensor) {
  DLManagedTensorVersioned* managed = nullptr;
  // A tensor that cannot be held can still be read: the handle is only there for speed.
  if (exchange->managed_tensor_from_py_object_no_sync(tensor, &managed) != 0) PyErr_Clear();
  managed_ = managed;
}

Handle::~Handle() {
  auto* managed = static_cast<DLManagedTensorVersioned*>(managed_);
  if (managed && managed->deleter) managed->deleter(managed);
}

std::string describe_shape(const View& view) {
  std::string text = "(";
  for (int d = 0; d < view.ndim; ++d) text += (d ? ", " : "") + std::to_string(view.shape[d]);
  return text + (view.ndim == 1 ? ",)" : ")");
}

std::string describe(const Device& device) {
  if (device.on_cpu()) return "cpu";
  const bool cuda = device.type == kDLCUDA || device.type == kDLROCM;
  return (cuda ? "cuda:" : "device type " + std::to_string(device.type) + ", number ") +
         std::to_string(device.id);
}

const char* dtype_name(const View& view) {
  if (view.dtype == Dtype::uint8) return "uint8";
  if (view.dtype == Dtype::int16) return "int16";
  if (view.dtype == Dtype::int8) return "int8";
  return kDtypeNames[int(view.dtype) + (view.complex ? kDtypes : 0)];
}

}  // namespace fastopt
