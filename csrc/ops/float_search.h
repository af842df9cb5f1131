// Exact search by a float32 scan, for instruction sets without an integer one.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/search.h"

namespace gplfast::ops {

void search_float(const SearchProblem& problem, const cpu::Kernels& kernels,
                  const std::function<void()>& poll, float* scores, int64_t* ids);

}  // namespace gplfast::ops
