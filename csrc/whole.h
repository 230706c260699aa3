// Rules over whole tensors: what Python calls.
#pragma once

#include <pybind11/pybind11.h>

namespace fastopt {

// Whether a tensor that is written overlaps another one that is written, or one that is only read.
// Throws Refused where one has no memory to be read.
bool share_memory(const pybind11::list& written, const pybind11::list& read_only);

}  // namespace fastopt
