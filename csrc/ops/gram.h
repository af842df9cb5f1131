// The scores of all pairs of rows within each of many lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "common/canonical.h"
#include "common/row_source.h"
#include "cpu/kernels.h"

namespace gplfast::ops {

struct GramProblem {
    RowSource docs;
    const int64_t* indptr = nullptr;  // (n_lists + 1,)
    const int64_t* ids = nullptr;     // rows of docs
    size_t n_lists = 0;
    Metric metric = Metric::cosine;
    bool is_triangle = false;  // what lies above the diagonal, row by row
    size_t n_threads = 1;
    size_t block_rows = 0;  // 0: chosen here. Never changes the answer.
};

// Where each list's values begin: (n_lists + 1,).
void gram_indptr(const GramProblem& problem, int64_t* value_indptr);

// Writes canonical scores, as float32 or as the bits of halves rounded from these: one of `floats`
// and `halves` is null. Memory: two blocks of rows per thread.
void gram(const GramProblem& problem, const cpu::Kernels& kernels, const int64_t* value_indptr,
          const std::function<void()>& poll, float* floats, uint16_t* halves);

}  // namespace gplfast::ops
