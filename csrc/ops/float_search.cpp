#include "ops/float_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "common/top_k.h"
#include "ops/exclusions.h"
#include "ops/partial_lists.h"
#include "ops/scan.h"

namespace gplfast::ops {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// How the pairs are cut into tasks: blocks of queries, times ranges of documents when there are too
// few queries to occupy the threads.
struct Plan {
    size_t block_queries;
    size_t block_docs;
    size_t range_docs;
    size_t n_query_blocks;
    size_t n_ranges;
};

Plan plan_for(const SearchProblem& problem, const cpu::Kernels& kernels) {
    constexpr size_t max_block_queries = 1024;  // packing a document costs below 3 % of its scan
    constexpr size_t min_block_queries = 256;
    constexpr size_t max_state_bytes = size_t{64} << 20;
    constexpr size_t min_range_docs = 8192;
    const size_t n_queries = problem.queries.n_rows();
    const size_t n_docs = problem.docs.n_rows();

    Plan plan{};
    plan.block_docs =
        problem.block_docs ? problem.block_docs : block_docs_for(problem.docs.dim(), kernels);
    plan.block_queries = problem.block_queries;
    if (plan.block_queries == 0) {
        const size_t state_bytes = TopK::capacity_for(std::min(problem.k, n_docs)) * sizeof(Hit);
        const size_t wanted = std::clamp(ceil_div(n_queries, 4 * problem.n_workers()),
                                         min_block_queries, max_block_queries);
        const size_t affordable = std::max<size_t>(1, max_state_bytes / state_bytes);
        plan.block_queries = round_up(std::min(wanted, affordable), kernels.tile_queries);
    }
    plan.n_query_blocks = ceil_div(n_queries, plan.block_queries);
    const size_t wanted_tasks = problem.n_workers() == 1 ? 1 : 2 * problem.n_workers();
    const size_t n_ranges = std::min(ceil_div(wanted_tasks, plan.n_query_blocks),
                                     std::max<size_t>(1, n_docs / min_range_docs));
    plan.range_docs = round_up(ceil_div(n_docs, n_ranges), plan.block_docs);
    plan.n_ranges = ceil_div(n_docs, plan.range_docs);
    return plan;
}

// One task: a block of queries against a range of documents.
class BlockSearch {
  public:
    BlockSearch(const SearchProblem& problem, const cpu::Kernels& kernels, size_t first_query,
                size_t n_queries, size_t k)
        : problem_(problem),
          kernels_(kernels),
          bound_(problem.docs.dim()),
          exclusions_(problem.exclude, first_query, n_queries, problem.first_id),
          rows_(problem.queries, first_query, n_queries),
          work_(problem.docs.dim()),
          hits_(n_queries * TopK::capacity_for(k)) {
        queries_.pack({problem.queries, nullptr, first_query, n_queries}, kernels.tile_queries,
                      problem.metric, kernels);
        slopes_ = slopes_of(queries_, bound_);
        thresholds_.assign(slopes_.size(), infinity);
        std::fill_n(thresholds_.begin(), n_queries, -infinity);
        best_.reserve(n_queries);
        for (size_t i = 0; i < n_queries; ++i) {
            best_.emplace_back(hits_.data() + i * TopK::capacity_for(k), k);
        }
    }

    // Visits the blocks of [begin, end) in a fixed scattered order: documents sorted by score would
    // otherwise each raise the threshold once.
    void run(size_t begin, size_t end, size_t block_docs, const StopFlag& stop) {
        const size_t n_blocks = ceil_div(end - begin, block_docs);
        const size_t step = scattered_step(n_blocks);
        for (size_t i = 0, block = 0; i < n_blocks && !stop.is_set(); ++i) {
            const size_t first = begin + block * block_docs;
            scan_block(first, std::min(block_docs, end - first));
            problem_.docs.release(first, std::min(end, first + block_docs));
            block = (block + step) % n_blocks;
        }
    }

    size_t n_queries() const { return best_.size(); }
    size_t finish(size_t query) { return best_[query].finish(); }
    const Hit* hits(size_t query) const {
        return hits_.data() + query * (hits_.size() / best_.size());
    }

  private:
    void scan_block(size_t first_doc, size_t n_docs) {
        docs_.pack({problem_.docs, nullptr, first_doc, n_docs}, kernels_.panel_docs,
                   problem_.metric, kernels_);
        scan(kernels_, queries_, slopes_, docs_, thresholds_.data(),
             [&](size_t query, size_t doc) { rescore(query, doc, first_doc + doc); });
    }

    void rescore(size_t query, size_t doc, size_t row) {
        const auto id = static_cast<int64_t>(row);
        if (exclusions_.contains(query, id)) return;
        const double query_norm = queries_.norms[query];
        const double doc_norm = docs_.norms[doc];
        if (std::isnan(query_norm) || std::isnan(doc_norm)) return;
        const double norms =
            query_norm * doc_norm;  // 0 times infinity is NaN: the dot product tells
        const double dot =
            norms == 0.0 ? 0.0
                         : kernels_.dot(rows_.row(query), problem_.docs.row(row, work_.data()),
                                        problem_.docs.dim());
        const float score = canonical_score(dot, query_norm, doc_norm, problem_.metric);
        if (std::isnan(score)) return;
        if (best_[query].push({score, id})) {
            thresholds_[query] = bound_.threshold(best_[query].kth_score());
        }
    }

    const SearchProblem& problem_;
    const cpu::Kernels& kernels_;
    const ScanBound bound_;
    const Exclusions exclusions_;
    const FloatRows rows_;
    std::vector<float> work_;
    PackedRows queries_;
    PackedRows docs_;
    std::vector<float> slopes_;
    std::vector<float> thresholds_;
    std::vector<Hit> hits_;
    std::vector<TopK> best_;
};

}  // namespace

void search_float(const SearchProblem& problem, const cpu::Kernels& kernels,
                  const std::function<void()>& poll, float* scores, int64_t* ids) {
    const size_t n_queries = problem.queries.n_rows();
    const size_t n_docs = problem.docs.n_rows();
    const Plan plan = plan_for(problem, kernels);
    const size_t range_k = std::min(problem.k, plan.range_docs);
    // With one range a block's answer is final.
    const bool is_final = plan.n_ranges == 1;
    PartialLists lists(is_final ? 0 : n_queries, plan.n_ranges, range_k);
    StopFlag stop;
    const auto run_task = [&](size_t task) {
        const size_t range = task % plan.n_ranges;
        const size_t first_query = task / plan.n_ranges * plan.block_queries;
        const size_t first_doc = range * plan.range_docs;
        BlockSearch block(problem, kernels, first_query,
                          std::min(plan.block_queries, n_queries - first_query), range_k);
        block.run(first_doc, std::min(n_docs, first_doc + plan.range_docs), plan.block_docs, stop);
        for (size_t i = 0; i < block.n_queries() && !stop.is_set(); ++i) {
            const size_t n_hits = block.finish(i);
            const size_t row = (first_query + i) * problem.k;
            if (is_final) {
                write_hits(block.hits(i), n_hits, problem.k, scores + row, ids + row);
            } else {
                lists.put(first_query + i, range, block.hits(i), n_hits);
            }
        }
    };
    parallel_for(plan.n_query_blocks * plan.n_ranges, problem.n_threads, run_task, poll, stop);
    lists.write(problem.k, poll, scores, ids);
}

}  // namespace gplfast::ops
