// Which instruction sets were compiled, which this processor has, and the kernels in use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastopt {

// The compiled instruction sets that this processor (and its operating system) can run, best first.
const std::vector<std::string>& supported_isas();

// The kernels in use: the best set, or the one that FASTOPT_ISA names. Throws
// std::invalid_argument, naming what is allowed, where the name is unknown or not supported here.
const Kernels& kernels();

// Use another instruction set from now on (tests reach each one with it).
void select_isa(const std::string& name);

}  // namespace fastopt
