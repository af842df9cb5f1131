#include "ops/index.h"

#include <utility>

namespace gplfast::ops {

void Index::add(const RowSource& rows, const cpu::KernelSet& set, size_t n_threads,
                const std::function<void()>& poll) {
    if (rows.n_rows() == 0) return;
    const bool is_first = rows_.n_rows() == 0;
    if (set.int8 && rows.dim() <= cpu::max_int8_dim && (is_first || is_packed())) {
        if (!packed_) {
            packed_ = std::make_unique<PackedDocs>(sampled_mean(rows, metric_, *set.floats),
                                                   metric_, chunk_docs_);
        }
        packed_->append(rows, set, n_threads, poll);
    }
    RowSource all = is_first ? RowSource(rows.dim(), rows.type(), set.floats->widen) : rows_;
    all.add(rows.stored(0), rows.n_rows());
    rows_ = std::move(all);
}

SearchProblem Index::problem(size_t begin, size_t end) const {
    SearchProblem problem;
    problem.docs = rows_.slice(begin, end);
    problem.metric = metric_;
    problem.packed = packed();
    problem.first_id = begin;
    return problem;
}

}  // namespace gplfast::ops
