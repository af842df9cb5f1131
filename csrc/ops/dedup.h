// Near duplicates: all pairs of rows whose canonical score reaches a threshold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "common/canonical.h"
#include "common/row_source.h"
#include "cpu/isa.h"

namespace gplfast::ops {

enum class DuplicateRule {
    components,   // one row of each connected component stays
    greedy,       // a row goes when it is similar to an earlier row that stays
    any_earlier,  // a row goes when it is similar to any earlier row
};

struct DedupProblem {
    RowSource docs;
    float threshold = 1.0f;  // finite
    Metric metric = Metric::cosine;
    DuplicateRule rule = DuplicateRule::components;
    bool keep_last = false;  // "earlier" means a higher row number
    size_t n_threads = 1;
    // 0: chosen here. Neither changes the answer.
    size_t block_rows = 0;
    size_t scan_depth = 0;  // of bytes that an integer scan looks at first
};

// Writes representative (n_rows,), the row that stays for each row (itself when it stays), and
// returns the number of similar pairs. Memory: O(n_rows) and tiles, and a byte an element for an
// integer scan; pairs are not stored, but for the block on the diagonal under the greedy rule.
uint64_t dedup(const DedupProblem& problem, const cpu::KernelSet& kernels,
               const std::function<void()>& poll, int64_t* representative);

}  // namespace gplfast::ops
