// Rules over whole tensors: what Python calls.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "tensors.h"

namespace fastopt {

// Memory from its first byte to the one behind its last, not empty. Whether any that is written
// overlaps another one, or one that is only read; sorts the former.
bool overlap(std::vector<Extent>& written, const std::vector<Extent>& read_only);

// Whether a tensor that is written overlaps another one that is written, or one that is only read.
// Throws Refused where one has no memory to be read.
bool share_memory(const pybind11::list& written, const pybind11::list& read_only);

// lr, beta2_decay, both eps, d, weight_decay, maximize.
using AdafactorGroup = std::tuple<double, double, double, double, double, double, bool>;

// One step of Adafactor over contiguous tensors of this CPU, each parameter's of one type; `cols`
// has None where `rows` has a variance. All checks are done before `first` is called, which may be
// None, and before anything is written. True: done; false: memory is reached twice, so that the
// parameters are to be given one by one; a pair: a parameter's place and why it is refused.
pybind11::object adafactor(const pybind11::list& params, const pybind11::list& grads,
                           const pybind11::list& rows, const pybind11::list& cols,
                           const pybind11::list& steps, const std::vector<AdafactorGroup>& groups,
                           const std::vector<int>& group_of, const pybind11::object& first,
                           int threads);

}  // namespace fastopt
