// What Python calls beside the plan: the functional form, a rule's names and scalars, the floor and
// the parts of a step that are measured alone.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace fastopt {

// The functional form: one pass over the given lists, with the hyperparameters that a param group
// would hold; `seconds` are the second planes of a place's tensors: 0 the parameters, 2 the first
// state, ... Throws Refused before anything is written.
void update(const std::string& rule, const pybind11::list& params, const pybind11::list& grads,
            const std::vector<pybind11::list>& states, const std::vector<pybind11::list>& carried,
            const std::map<int, pybind11::list>& seconds, const std::string& first,
            const pybind11::dict& group, bool maximize, std::optional<double> grad_scale,
            int threads);

// What all of a state is before its first step: a number, or "param", what the parameter is;
// nothing where the first step writes it without reading it.
using Start = std::variant<std::monostate, double, std::string>;

// The states that a group's hyperparameters ask for, each with its start. Only where it `waits` is
// a number right that is a tensor's on a device.
std::vector<std::pair<std::string, Start>> states(const std::string& rule,
                                                  const pybind11::dict& group, bool waits);

// What a parameter of the group carries, each with what it is before its first step, likewise; no
// group has a number that begins as a hyperparameter be NaN.
std::vector<std::pair<std::string, double>> carried(const std::string& rule,
                                                    const std::optional<pybind11::dict>& group,
                                                    bool waits);

// The states of every layout, each with what numbers it holds: "signed", "positive", "maximum" or
// "exact"; those of a group's.
std::vector<pybind11::dict> variants(const std::string& rule);
pybind11::dict kinds(const std::string& rule, const pybind11::dict& group);

// A group's numbers in the rule's order and, of those that are tensors on a device, their addresses
// (see Hyper::at), without reading these.
std::pair<std::vector<double>, std::vector<int64_t>> hyperparameters(const std::string& rule,
                                                                     const pybind11::dict& group);

// The scalars of one step, by name: what every backend multiplies with. Then the numbers that the
// step leaves of those a parameter carried into it, all of them in double.
std::pair<pybind11::dict, std::vector<double>> scalars(const std::string& rule,
                                                       const pybind11::dict& group,
                                                       const std::vector<double>& carried,
                                                       bool first);

// The floor of a step's time: one pass over flat float32 tensors of one length that reads all of
// them and writes `updates` back (their values are overwritten).
void stream(const pybind11::list& reads, const pybind11::list& updates, int threads);

// Read every tensor as a step does; how many elements all of them have.
int64_t read_tensors(const pybind11::list& tensors);

// Ask every parameter for its gradient as a step does; how many have one.
int64_t read_grads(const pybind11::list& params);

}  // namespace fastopt
