// The binding: a table of contents of the compiled core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "collect.h"
#include "dispatch.h"
#include "engine.h"
#include "functional.h"
#include "hyper.h"
#include "plan.h"
#include "tensors.h"

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
  m.def(
      "counts_steps",
      [](const std::string& rule) { return kernels().rules[find_rule(rule)].counts_steps; },
      "rule"_a);
  m.def(
      "variants",
      [](const std::string& rule) {
        const Rule& r = kernels().rules[find_rule(rule)];
        std::vector<std::vector<std::string>> states;
        for (int v = 0; v < r.variants; ++v) {
          states.emplace_back();
          for (const Rule::State* s = r.states[v]; s->name; ++s) states.back().push_back(s->name);
        }
        return states;
      },
      "rule"_a);
  m.def(
      "scalar_names",
      [](const std::string& rule) { return names(kernels().rules[find_rule(rule)].scalar_names); },
      "rule"_a);
  m.def(
      "takes_sparse",
      [](const std::string& rule) { return kernels().rules[find_rule(rule)].sparse; }, "rule"_a);
  m.def("states", states, "rule"_a, "group"_a);
  m.def("hyperparameters", hyperparameters, "rule"_a, "group"_a);
  m.def("scalars", scalars, "rule"_a, "group"_a, "step"_a, "first"_a = false);
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
  py::class_<Plan>(m, "Plan")
      .def(py::init<const std::string&, const py::list&, const py::dict&, const std::string&,
                    const std::string&, const std::string&>(),
           "rule"_a, "groups"_a, "state"_a, "engine"_a, "first"_a, "begins"_a)
      .def("step", &Plan::step, "groups"_a, "state"_a, "threads"_a, "grad_scale"_a = py::none(),
           "before"_a = py::none())
      .def_property_readonly("grad_norm", &Plan::grad_norm)
      .def("stats", [](const Plan& plan) {
        std::vector<std::tuple<int, double, double, double>> list;
        for (const Batch::Stats& s : plan.stats()) {
          list.emplace_back(s.index, s.grad_norm, s.update_norm, s.weight_norm);
        }
        return list;
      });
  py::class_<Containers>(m, "Containers")
      .def(py::init<const std::string&, const py::list&, const py::dict&, const std::string&,
                    const std::optional<Containers::Doubles>&, const Containers::Int64s&>(),
           "rule"_a, "groups"_a, "state"_a, "idle"_a, "passes"_a.noconvert(),
           "written"_a.noconvert())
      .def("check", &Containers::check, "groups"_a, "state"_a)
      .def("check_gradients", &Containers::check_gradients, "collectors"_a);
  py::class_<Collector>(m, "Collector")
      .def(py::init<const std::string&, const py::list&, bool, const Collector::Int64s&,
                    const std::optional<py::array>&, const std::optional<Collector::Doubles>&,
                    const std::optional<Collector::Int64s>&>(),
           "rule"_a, "slots"_a, "writes_grads"_a, "grads"_a.noconvert(),
           "scalars"_a.noconvert() = py::none(), "hyper"_a.noconvert() = py::none(),
           "hyper_at"_a.noconvert() = py::none())
      .def("collect", &Collector::collect, "groups"_a)
      .def("written", &Collector::written)
      .def("launched", &Collector::launched);
  m.def("update", update, "rule"_a, "params"_a, "grads"_a, "states"_a, "steps"_a, "first"_a,
        "group"_a, "maximize"_a, "grad_scale"_a, "threads"_a);
}

using Halves = py::array_t<uint16_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

Dtype half_dtype(const std::string& name) {
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw std::invalid_argument("dtype is '" + name + "'; allowed: bfloat16, float16");
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
  register_probes(m);
}

}  // namespace fastopt
