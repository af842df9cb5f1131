// Search for a few queries: every pair is scored as the answer needs it. Reading the documents from
// memory takes longer than that, so a scan in front would only cost.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/search.h"

namespace gplfast::ops {

void search_direct(const SearchProblem& problem, const cpu::Kernels& kernels,
                   const std::function<void()>& poll, float* scores, int64_t* ids);

}  // namespace gplfast::ops
