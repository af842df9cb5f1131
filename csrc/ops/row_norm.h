// The length by which a canonical score divides.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "common/canonical.h"
#include "cpu/kernels.h"

namespace gplfast::ops {

// 1 for the inner product; NaN for a row that has no cosine.
inline double row_norm(const float* row, size_t dim, Metric metric, const cpu::Kernels& kernels) {
    if (metric == Metric::inner_product) return 1.0;
    const double norm = std::sqrt(kernels.dot(row, row, dim));
    return std::isinf(norm) ? std::numeric_limits<double>::quiet_NaN() : norm;
}

}  // namespace gplfast::ops
