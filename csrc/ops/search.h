// Exact top-k documents of each query.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "common/canonical.h"
#include "common/row_source.h"
#include "common/total_order.h"
#include "cpu/isa.h"

namespace gplfast::ops {

// Documents never returned: those of query i are ids[indptr[i]] .. ids[indptr[i + 1] - 1], in any
// order, repeats allowed. No exclusions: both null.
struct ExcludeView {
    const int64_t* indptr = nullptr;
    const int64_t* ids = nullptr;
};

class PackedDocs;

// What the bounds of the integer scan left to do, over all queries.
struct BoundCounts {
    std::atomic<uint64_t> n_candidates{0};  // pairs that the scan could not rule out
    std::atomic<uint64_t> n_rescored{0};    // pairs whose canonical score was computed
};

struct SearchProblem {
    RowSource queries;
    RowSource docs;
    const PackedDocs* packed = nullptr;  // rows first_id.. of it are docs; may be null
    size_t first_id = 0;                 // the id of docs' row 0
    size_t k = 1;
    Metric metric = Metric::inner_product;
    ExcludeView exclude;
    size_t n_threads = 1;           // 0: the calling thread, for short work
    size_t block_queries = 0;       // 0: chosen here. Never changes the answer.
    size_t block_docs = 0;          // 0: chosen here. Never changes the answer.
    BoundCounts* counts = nullptr;  // where a scan of integers adds its counts; may be null

    size_t n_workers() const { return std::max<size_t>(1, n_threads); }
};

// Writes (n_queries, k) scores and ids, best first; -inf and -1 where fewer than k exist.
// Memory: O(n_queries k) and tiles.
void search(const SearchProblem& problem, const cpu::KernelSet& set,
            const std::function<void()>& poll, float* scores, int64_t* ids);

// One row of the answer: hits in order, then padding.
void write_hits(const Hit* hits, size_t n_hits, size_t k, float* scores, int64_t* ids);

}  // namespace gplfast::ops
