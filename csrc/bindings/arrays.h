// Every check of an array from Python, and every message about one. Nothing is copied or cast.
#pragma once

#include <pybind11/numpy.h>

#include <string>

#include "common/row_source.h"
#include "cpu/isa.h"
#include "ops/margins.h"
#include "ops/search.h"

namespace gplfast::bindings {

// A C-contiguous matrix of float32 or float16, of at least one column.
RowSource rows_from(const char* op, const char* name, const pybind11::handle& object,
                    const cpu::KernelSet& kernels);

void check_same_dim(const char* op, const char* name, size_t dim, const char* other,
                    size_t other_dim);

// A pair (indptr, ids), or None. Checks every offset and every id.
ops::ExcludeView exclude_from(const char* op, const pybind11::object& exclude, size_t n_queries,
                              size_t n_docs);

// Lists of rows of docs, a pair (indptr, ids), for `op`. Checks every offset and every id.
struct Lists {
    const int64_t* indptr;
    const int64_t* ids;
    size_t n_lists;
};
Lists lists_from(const char* op, const pybind11::object& lists, size_t n_docs);

// Ragged scores; their number of queries goes to n_queries.
ops::RaggedScores ragged_from(const char* op, const char* name, const pybind11::handle& scores,
                              const pybind11::handle& indptr, size_t& n_queries);

// The groups of `n` documents, or null for None.
const int64_t* groups_from(const char* op, const char* name, const pybind11::object& groups,
                           size_t n);

// Every query with negatives has a positive, and both name the same queries.
void check_margins(const ops::RaggedScores& positives, size_t n_positive_queries,
                   const ops::RaggedScores& negatives, size_t n_negative_queries);

}  // namespace gplfast::bindings
