#include "ops/direct_search.h"

#include <algorithm>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "common/top_k.h"
#include "ops/exclusions.h"
#include "ops/partial_lists.h"
#include "ops/row_norm.h"

namespace gplfast::ops {
namespace {

// All queries against a range of documents.
class RangeSearch {
  public:
    RangeSearch(const SearchProblem& problem, const cpu::Kernels& kernels,
                const Exclusions& exclusions, size_t k)
        : problem_(problem),
          kernels_(kernels),
          exclusions_(exclusions),
          queries_(problem.queries, 0, problem.queries.n_rows()),
          work_(problem.docs.dim()),
          hits_(queries_.count() * TopK::capacity_for(k)) {
        for (size_t i = 0; i < queries_.count(); ++i) {
            best_.emplace_back(hits_.data() + i * TopK::capacity_for(k), k);
            norms_.push_back(norm_of(queries_.row(i)));
        }
    }

    void run(size_t begin, size_t end, const StopFlag& stop) {
        constexpr size_t rows_between_looks = 4096;
        for (size_t row = begin; row < end; ++row) {
            if (row % rows_between_looks == 0) {
                if (stop.is_set()) return;
                problem_.docs.release(std::max(begin, row - std::min(row, rows_between_looks)),
                                      row);
            }
            const float* doc = problem_.docs.row(row, work_.data());
            const double norm = norm_of(doc);
            for (size_t i = 0; i < best_.size(); ++i) add(i, doc, norm, static_cast<int64_t>(row));
        }
    }

    size_t finish(size_t i) { return best_[i].finish(); }
    const Hit* hits(size_t i) const { return hits_.data() + i * (hits_.size() / best_.size()); }

  private:
    void add(size_t i, const float* doc, double norm, int64_t id) {
        const double dot = kernels_.dot(queries_.row(i), doc, problem_.docs.dim());
        const float score = canonical_score(dot, norms_[i], norm, problem_.metric);
        if (!(score >= best_[i].kth_score()) || exclusions_.contains(i, id)) return;
        best_[i].push({score, id});
    }

    double norm_of(const float* row) const {
        return row_norm(row, problem_.docs.dim(), problem_.metric, kernels_);
    }

    const SearchProblem& problem_;
    const cpu::Kernels& kernels_;
    const Exclusions& exclusions_;
    const FloatRows queries_;
    std::vector<float> work_;
    std::vector<Hit> hits_;
    std::vector<TopK> best_;
    std::vector<double> norms_;
};

}  // namespace

void search_direct(const SearchProblem& problem, const cpu::Kernels& kernels,
                   const std::function<void()>& poll, float* scores, int64_t* ids) {
    constexpr size_t min_range_docs = 4096;
    const size_t n_docs = problem.docs.n_rows();
    const size_t n_queries = problem.queries.n_rows();
    const size_t wanted = problem.n_workers() == 1 ? 1 : 4 * problem.n_workers();
    const size_t n_ranges = std::clamp<size_t>(n_docs / min_range_docs, 1, wanted);
    const size_t range_k = std::min(problem.k, ceil_div(n_docs, n_ranges));
    const Exclusions exclusions(problem.exclude, 0, n_queries, problem.first_id);
    PartialLists lists(n_queries, n_ranges, range_k);
    StopFlag stop;
    const auto run_range = [&](size_t range) {
        RangeSearch search(problem, kernels, exclusions, range_k);
        search.run(n_docs * range / n_ranges, n_docs * (range + 1) / n_ranges, stop);
        for (size_t i = 0; i < n_queries && !stop.is_set(); ++i) {
            const size_t n_hits = search.finish(i);
            lists.put(i, range, search.hits(i), n_hits);
        }
    };
    parallel_for(n_ranges, problem.n_threads, run_range, poll, stop);
    lists.write(problem.k, poll, scores, ids);
}

}  // namespace gplfast::ops
