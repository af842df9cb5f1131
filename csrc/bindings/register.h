// The parts of the module, one function each.
#pragma once

#include <pybind11/pybind11.h>

namespace gplfast::bindings {

void register_ops(pybind11::module_& m);

}  // namespace gplfast::bindings
