// Search for a few queries, for which packing the documents would take longer than scoring them.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/search.h"

namespace gplfast::ops {

void search_direct(const SearchProblem& problem, const cpu::Kernels& kernels,
                   const std::function<void()>& poll, float* scores, int64_t* ids);

}  // namespace gplfast::ops
