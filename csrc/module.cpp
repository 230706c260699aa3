// The binding: a table of contents of the compiled core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "batch.h"
#include "dispatch.h"
#include "functional.h"
#include "hyper.h"
#include "plan.h"
#include "rows.h"
#include "tensors.h"
#include "whole.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace fastopt {
namespace {

std::vector<std::string> names(const char* const* texts) {
  std::vector<std::string> list;
  for (; *texts; ++texts) list.emplace_back(*texts);
  return list;
}

void register_rules(py::module_& m) {
  m.def("rules", [] {
    std::vector<std::string> known;
    for (int i = 0; i < kernels().rule_count; ++i) known.emplace_back(kernels().rules[i].name);
    return known;
  });
  m.def(
      "hyper",
      [](const std::string& rule) {
        py::dict numbers;
        for (const Rule::Key* key = kernels().rules[find_rule(rule)].hyper; key->name; ++key) {
          numbers[key->name] = key->numbers;
        }
        return numbers;
      },
      "rule"_a);
  m.def("carried", carried, "rule"_a, "group"_a = py::none(), "waits"_a = false);
  m.def("variants", variants, "rule"_a);
  m.def(
      "scalar_names",
      [](const std::string& rule) { return names(kernels().rules[find_rule(rule)].scalar_names); },
      "rule"_a);
  m.def(
      "takes_sparse",
      [](const std::string& rule) { return kernels().rules[find_rule(rule)].sparse; }, "rule"_a);
  m.def(
      "waits_for_norms",
      [](const std::string& rule) { return kernels().rules[find_rule(rule)].measured != nullptr; },
      "rule"_a);
  m.def("states", states, "rule"_a, "group"_a, "waits"_a = false);
  m.def("kinds", kinds, "rule"_a, "group"_a);
  m.def("hyperparameters", hyperparameters, "rule"_a, "group"_a);
  m.def("scalars", scalars, "rule"_a, "group"_a, "carried"_a, "first"_a = false);
}

void register_isa(py::module_& m) {
  m.def("isa", [] { return kernels().isa; });
  m.def("supported_isas", supported_isas);
  m.def("select_isa", select_isa, "name"_a);
  m.attr("compiler") = FASTOPT_COMPILER;
}

void register_step(py::module_& m) {
  m.attr("dtypes") =
      py::cast(std::vector<std::string>(std::begin(kDtypeNames), std::end(kDtypeNames)));
  py::register_exception<Refused>(m, "Refused", PyExc_RuntimeError);
  m.def("bind_shards", bind_shards, "dtensor"_a);
  m.def(
      "memory_of",
      [](const py::object& object) -> py::object {
        PyObject* const tensor = memory_of(object.ptr());
        return tensor ? py::reinterpret_borrow<py::object>(tensor) : py::none();
      },
      "object"_a);
  py::class_<Rows>(m, "Rows").def(
      py::init<const std::string&, const py::list&, const Rows::Int64s&,
               const std::optional<py::array>&, const std::optional<Rows::Doubles>&,
               const std::optional<Rows::Int64s>&, const std::optional<Rows::Int64s>&,
               const std::optional<Rows::Int64s>&, const std::optional<Rows::Int32s>&>(),
      "rule"_a, "params"_a, "grads"_a.noconvert(), "scalars"_a.noconvert() = py::none(),
      "hyper"_a.noconvert() = py::none(), "hyper_at"_a.noconvert() = py::none(),
      "keys"_a.noconvert() = py::none(), "seeds"_a.noconvert() = py::none(),
      "begins"_a.noconvert() = py::none());
  py::class_<Shard>(m, "Shard")
      .def(py::init<uint64_t, int64_t, int64_t, int>(), "first"_a, "run"_a, "stride"_a, "team"_a);
  py::class_<Plan>(m, "Plan")
      .def(py::init<const std::string&, const py::list&, const py::dict&,
                    const std::vector<std::string>&, const std::string&, const std::string&,
                    const std::vector<Rows*>&, const std::optional<Plan::Doubles>&,
                    const std::vector<Shard>&>(),
           "rule"_a, "groups"_a, "state"_a, "backends"_a, "first"_a, "begins"_a,
           "rows"_a = py::list(), "passes"_a.noconvert() = py::none(), "shards"_a = py::list(),
           py::keep_alive<1, 8>())
      .def("layers", &Plan::layers, "groups"_a, "state"_a, "grad_scale"_a = py::none())
      .def("step", &Plan::step, "groups"_a, "state"_a, "threads"_a, "grad_scale"_a = py::none(),
           "check"_a = py::none(), "agree"_a = py::none(), "agree_tensors"_a = py::none(),
           "rest"_a = py::none(), "launch"_a = py::none())
      .def_property_readonly("grad_norm", &Plan::grad_norm)
      .def("stats", [](const Plan& plan) {
        std::vector<std::tuple<int, double, double, double>> list;
        for (const Batch::Stats& s : plan.stats()) {
          list.emplace_back(s.index, s.grad_norm, s.update_norm, s.weight_norm);
        }
        return list;
      });
  m.def("update", update, "rule"_a, "params"_a, "grads"_a, "states"_a, "carried"_a, "seconds"_a,
        "first"_a, "group"_a, "maximize"_a, "grad_scale"_a, "threads"_a);
}

using Halves = py::array_t<uint16_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

Dtype half_dtype(const std::string& name) {
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw std::invalid_argument("dtype is '" + name + "'; allowed: bfloat16, float16");
}

Format format_named(const std::string& name) {
  std::string known;
  for (int i = 0; i < kFormats; ++i) {
    if (name == kFormatNames[i]) return Format(i);
    known += std::string(i ? ", " : "") + kFormatNames[i];
  }
  throw std::invalid_argument("format is '" + name + "'; allowed: " + known);
}

Rounds rounds_named(const std::string& name) {
  for (int i = 0; i < kRoundings; ++i) {
    if (name == kRoundsNames[i]) return Rounds(i);
  }
  throw std::invalid_argument("rounds is '" + name +
                              "'; allowed: nearest, weight, positive, signed");
}

using Bytes = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;
using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

// The compact formats: planes as bytes.
void register_format_probes(py::module_& m) {
  m.def(
      "decode",
      [](const std::string& format, const Bytes& first, const Bytes& second, int64_t count) {
        const Format from = format_named(format);
        if (first.size() != first_bytes(from, count) ||
            second.size() != second_bytes(from, count)) {
          throw std::invalid_argument("decode() takes planes of the count's sizes");
        }
        Floats out(count);
        kernels().decode(from, reinterpret_cast<const char*>(first.data()),
                         reinterpret_cast<const char*>(second.data()), out.mutable_data(), count);
        return out;
      },
      "format"_a, "first"_a, "second"_a, "count"_a);
  m.def(
      "encode",
      [](const std::string& format, const std::string& rounds, const Floats& numbers,
         const Words& words) {
        const Stored to{format_named(format), rounds_named(rounds), 0};
        if (words.size() != numbers.size()) {
          throw std::invalid_argument("encode() takes a word for each number");
        }
        Bytes first(first_bytes(to.format, numbers.size()));
        Bytes second(second_bytes(to.format, numbers.size()));
        kernels().encode(to, numbers.data(), words.data(),
                         reinterpret_cast<char*>(first.mutable_data()),
                         reinterpret_cast<char*>(second.mutable_data()), numbers.size());
        return py::make_tuple(first, second);
      },
      "format"_a, "rounds"_a, "numbers"_a, "words"_a);
  m.def(
      "noise",
      [](uint64_t seed, uint64_t step, uint64_t parameter, int word, uint64_t element,
         int64_t count) {
        Words out(count);
        const uint64_t key = key_of(seed, step, parameter, word, element >> 32);
        kernels().words(key, uint32_t(element), out.mutable_data(), count);
        return out;
      },
      "seed"_a, "step"_a, "parameter"_a, "word"_a, "element"_a, "count"_a);
}

void register_whole(py::module_& m) {
  m.def("adafactor", adafactor, "params"_a, "grads"_a, "rows"_a, "cols"_a, "steps"_a, "groups"_a,
        "group_of"_a, "first"_a, "threads"_a);
  m.def("share_memory", share_memory, "written"_a, "read_only"_a);
}

// Measuring and testing: not used by a step.
void register_probes(py::module_& m) {
  m.def("stream", stream, "reads"_a, "updates"_a, "threads"_a);
  m.def("read_tensors", read_tensors, "tensors"_a);
  m.def("read_grads", read_grads, "params"_a);
  m.def("useful_threads", useful_threads, "count"_a, "threads"_a);
  m.def(
      "widen",
      [](const std::string& dtype, const Halves& in) {
        Floats out(in.size());
        kernels().widen(half_dtype(dtype), in.data(), out.mutable_data(), in.size());
        return out;
      },
      "dtype"_a, "values"_a);
  m.def(
      "narrow",
      [](const std::string& dtype, const Floats& in) {
        Halves out(in.size());
        kernels().narrow(half_dtype(dtype), in.data(), out.mutable_data(), in.size());
        return out;
      },
      "dtype"_a, "values"_a);
  m.def(
      "square_sums",
      [](const Floats& in) {
        py::array_t<double> out((in.size() + kNormBlock - 1) / kNormBlock);
        kernels().square_sums[int(Dtype::float32)](reinterpret_cast<const char*>(in.data()),
                                                   in.size(), out.mutable_data());
        return out;
      },
      "values"_a);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "fastopt's compiled core: rules, instruction sets, the step, and probes for tests.";
  bind_torch();
  register_rules(m);
  register_isa(m);
  register_step(m);
  register_whole(m);
  register_probes(m);
  register_format_probes(m);
}

}  // namespace fastopt
