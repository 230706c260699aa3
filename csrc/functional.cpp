// The functional form, a rule's names and scalars, the floor, a step's parts alone.
#include "functional.h"

#include <algorithm>
#include <limits>

#include "batch.h"
#include "dispatch.h"
#include "hyper.h"
#include "parallel.h"
#include "plan.h"
#include "tensors.h"

namespace py = pybind11;

namespace fastopt {

void update(const std::string& rule_name, const py::list& params, const py::list& grads,
            const std::vector<py::list>& states, const std::vector<py::list>& carried,
            const std::map<int, py::list>& seconds, const std::string& first, const py::dict& group,
            bool maximize, std::optional<double> grad_scale, int threads) {
  const int rule = find_rule(rule_name);
  Group of;
  of.rule = rule;
  of.hyper = read_hyper(rule, group.ptr(), true);
  of.passes.maximize = maximize;
  of.passes.unscale = grad_scale.has_value();
  of.passes.grad_scale = grad_scale.value_or(1);
  const size_t expected = length(kernels().rules[rule].states[of.hyper.variant]);
  of.streams = 2 + int(expected);
  read_formats(group.ptr(), &of);
  of.carries = carries_of(rule, of.compact);
  const size_t numbers = length(of.carries);
  of.tensors = of.streams + int(numbers);
  std::vector<py::list> lists = {params, grads};
  lists.insert(lists.end(), states.begin(), states.end());
  lists.insert(lists.end(), carried.begin(), carried.end());
  bool even = states.size() == expected && carried.size() == numbers;
  for (const py::list& list : lists) even &= list.size() == params.size();
  for (const auto& [stream, list] : seconds) {
    even &= list.size() == params.size() && stream >= 0 && stream < of.streams && stream != 1;
  }
  if (!even) {
    throw std::invalid_argument("update() takes, for " + std::to_string(params.size()) +
                                " parameters, as many gradients, " + std::to_string(expected) +
                                " lists of as many states and " + std::to_string(numbers) +
                                " of as many numbers, and second planes of these by place");
  }

  Batch batch;
  batch.clear();
  batch.set_group(of);
  Members members;
  Member member;
  member.group = 0;
  member.of = &of;
  member.begins = false;
  int i = 0;
  try {
    for (; size_t(i) < params.size(); ++i) {
      member.index = i;
      for (size_t k = 0; k < lists.size(); ++k) {
        member.tensors[k] = PyList_GET_ITEM(lists[k].ptr(), i);
      }
      member.seconds = 0;
      for (const auto& [stream, list] : seconds) {
        member.second[stream] = PyList_GET_ITEM(list.ptr(), i);
        member.seconds |= unsigned(member.second[stream] != Py_None) << stream;
      }
      member.first = size_t(i) < first.size() && first[size_t(i)];
      members.read(member);
      batch.add(member);
    }
    members.settle(&i);
  } catch (const Refused& refused) {
    throw Refused("params[" + std::to_string(i) + "]: " + refused.what());
  } catch (const Changed& changed) {
    throw Refused("params[" + std::to_string(i) + "]: " + changed.what());
  }
  if (params.empty()) return;
  increment_versions(params);
  if (grad_scale) increment_versions(grads);
  py::gil_scoped_release unlocked;
  batch.run(threads, members.share_memory());
}

namespace {

// The hyperparameter of this name; 0 where there is none, as of "zeros".
double named(const Rule& rule, const Hyper& hyper, const std::string& name) {
  int at = 0;
  for (const Rule::Key* key = rule.hyper; key->name; at += key++->numbers) {
    if (name == key->name) return hyper.values[at];
  }
  return 0;
}

}  // namespace

std::vector<std::pair<std::string, Start>> states(const std::string& rule_name,
                                                  const py::dict& group, bool waits) {
  const int index = find_rule(rule_name);
  const Rule& rule = kernels().rules[index];
  const Hyper hyper = read_hyper(index, group.ptr(), waits);
  std::vector<std::pair<std::string, Start>> list;
  for (const Rule::State* state = rule.states[hyper.variant]; state->name; ++state) {
    auto& [name, start] = list.emplace_back(state->name, std::monostate{});
    if (state->start == kUnwritten) continue;
    if (std::string(state->start) == kOfParam) {
      start = kOfParam;
    } else {
      start = named(rule, hyper, state->start);
    }
  }
  return list;
}

std::vector<std::pair<std::string, double>> carried(const std::string& rule_name,
                                                    const std::optional<py::dict>& group,
                                                    bool waits) {
  const int index = find_rule(rule_name);
  Group asks;
  if (group) read_formats(group->ptr(), &asks);
  std::vector<std::pair<std::string, double>> list;
  for (const Rule::Carry* number = carries_of(index, asks.compact); number->name; ++number) {
    auto& [name, start] = list.emplace_back(number->name, number->start);
    if (!number->from) continue;
    start =
        group ? named(kernels().rules[index], read_hyper(index, group->ptr(), waits), number->from)
              : std::numeric_limits<double>::quiet_NaN();
  }
  return list;
}

std::vector<py::dict> variants(const std::string& rule_name) {
  static constexpr const char* kNames[] = {"signed", "positive", "maximum", "exact"};
  const Rule& rule = kernels().rules[find_rule(rule_name)];
  std::vector<py::dict> list(rule.variants);
  for (int v = 0; v < rule.variants; ++v) {
    for (const Rule::State* state = rule.states[v]; state->name; ++state) {
      list[v][state->name] = kNames[state->kind];
    }
  }
  return list;
}

py::dict kinds(const std::string& rule, const py::dict& group) {
  return variants(rule)[read_hyper(find_rule(rule), group.ptr(), false).variant];
}

std::pair<std::vector<double>, std::vector<int64_t>> hyperparameters(const std::string& rule,
                                                                     const py::dict& group) {
  const Hyper hyper = read_hyper(find_rule(rule), group.ptr(), false);
  return {{hyper.values, hyper.values + hyper.count}, {hyper.at, hyper.at + hyper.count}};
}

std::pair<py::dict, std::vector<double>> scalars(const std::string& rule_name,
                                                 const py::dict& group,
                                                 const std::vector<double>& carried, bool first) {
  const int index = find_rule(rule_name);
  const Rule& rule = kernels().rules[index];
  if (int(carried.size()) != length(rule.carries)) {
    throw std::invalid_argument("scalars() takes " + std::to_string(length(rule.carries)) +
                                " numbers that a parameter carries");
  }
  Carried numbers[kMaxCarried] = {};
  for (size_t k = 0; k < carried.size(); ++k) numbers[k] = {carried[k], true};
  double values[kMaxScalars];
  rule.scalars(read_hyper(index, group.ptr(), true).values, numbers, first, values);
  py::dict by_name;
  for (int i = 0; rule.scalar_names[i]; ++i) by_name[rule.scalar_names[i]] = values[i];
  std::vector<double> left;
  for (size_t k = 0; k < carried.size(); ++k) left.push_back(numbers[k].value);
  return {by_name, left};
}

void stream(const py::list& reads, const py::list& updates, int threads) {
  std::vector<float*> streams;
  int64_t count = -1;
  for (const py::list& list : {updates, reads}) {
    for (const py::handle tensor : list) {
      View view;
      read(tensor.ptr(), &view);
      if (view.dtype != Dtype::float32 || view.ndim != 1 || view.strides[0] != 1 ||
          (count >= 0 && view.numel != count)) {
        throw std::invalid_argument("stream() takes flat contiguous float32 tensors of one length");
      }
      count = view.numel;
      streams.push_back(reinterpret_cast<float*>(view.data));
    }
  }
  const int64_t whole = count / 64;  // shares of whole cache lines; a tail is left out
  const auto run = kernels().stream;
  py::gil_scoped_release unlocked;
  parallel(threads, [&](int64_t rank, int64_t size) {
    run(streams.data(), int(streams.size()), int(updates.size()), whole * rank / size * 64,
        whole * (rank + 1) / size * 64);
  });
}

int64_t read_tensors(const py::list& tensors) {
  int64_t elements = 0;
  for (const py::handle tensor : tensors) {
    View view;
    read(tensor.ptr(), &view);
    elements += view.numel;
  }
  return elements;
}

int64_t read_grads(const py::list& params) {
  int64_t grads = 0;
  for (const py::handle param : params) {
    if (!memory_of(param.ptr())) throw Refused("read_grads() takes plain tensors");
    grads += !py::reinterpret_steal<py::object>(grad_of(param.ptr())).is_none();
  }
  return grads;
}

}  // namespace fastopt
