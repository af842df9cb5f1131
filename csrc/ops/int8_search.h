// Exact search by an integer scan: documents are quantised once per 512 MB of candidates (usually
// once per call), every block of queries scans them, and only what the bounds cannot decide is
// scored.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/quantized.h"
#include "ops/search.h"

namespace gplfast::ops {

void search_int8(const SearchProblem& problem, const cpu::Kernels& kernels,
                 const cpu::Int8Kernels& int8, const Quantizer& quantizer,
                 const std::function<void()>& poll, float* scores, int64_t* ids);

}  // namespace gplfast::ops
