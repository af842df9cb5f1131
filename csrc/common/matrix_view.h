// A C-contiguous float32 matrix that somebody else owns.
#pragma once

#include <cstddef>

namespace gplfast {

struct MatrixView {
    const float* data = nullptr;
    size_t n_rows = 0;
    size_t dim = 0;

    const float* row(size_t i) const { return data + i * dim; }
};

}  // namespace gplfast
