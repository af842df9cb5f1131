#include "ops/direct_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "common/top_k.h"
#include "ops/exclusions.h"
#include "ops/partial_lists.h"
#include "ops/rounding.h"
#include "ops/row_norm.h"
#include "ops/scan.h"

namespace gplfast::ops {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// All queries against a range of documents, which are read once and as they lie in memory. With
// Kernels::score_rows most pairs are left out by an approximate score and its proven error.
//
// A pair can reach a query's threshold t only if its approximate score is at least
//     t - gamma |q| |x|             for the inner product,
//     t |q| |x| - gamma |q| |x|     for cosine (gamma: scan.h),
// where |x| is within 1 +- gamma of the approximate norm n, the root of the row's approximate
// square. Both are a n + b, with a and b of the query. Rows whose squares may have left float32 are
// scored, and so is what meets a NaN.
class RangeSearch {
  public:
    RangeSearch(const SearchProblem& problem, const cpu::Kernels& kernels,
                const Exclusions& exclusions, size_t k)
        : problem_(problem),
          kernels_(kernels),
          exclusions_(exclusions),
          dim_(problem.docs.dim()),
          bound_(dim_),
          rows_(problem.queries, 0, problem.queries.n_rows()),
          n_padded_(round_up(rows_.count(), cpu::row_queries)),
          work_(cpu::row_docs * dim_),
          queries_(n_padded_ * dim_, 0.0f),
          slopes_(n_padded_, 0.0f),
          offsets_(n_padded_, infinity),  // the padding has no candidates
          scores_(cpu::row_docs * n_padded_),
          hits_(rows_.count() * TopK::capacity_for(k)) {
        for (size_t i = 0; i < rows_.count(); ++i) {
            const float* query = rows_.row(i);
            best_.emplace_back(hits_.data() + i * TopK::capacity_for(k), k);
            norms_.push_back(norm_of(query));
            lengths_.push_back(std::sqrt(kernels.dot(query, query, dim_)));
            std::copy_n(query, dim_, queries_.data() + i * dim_);
            raise(i, -infinity);
        }
    }

    void run(size_t begin, size_t end, const StopFlag& stop) {
        constexpr size_t rows_between_looks = 4096;
        for (size_t row = begin; row < end && !stop.is_set();) {
            const size_t first = row;
            const size_t last = std::min(end, row + rows_between_looks);
            if (kernels_.score_rows && rows_.count() > 1) {  // one is bound by memory as it is
                for (; row + cpu::row_docs <= last; row += cpu::row_docs) scan(row);
            }
            for (; row < last; ++row) {
                const float* doc = problem_.docs.row(row, work_.data());
                const double norm = norm_of(doc);
                for (size_t i = 0; i < best_.size(); ++i) add(i, doc, norm, row);
            }
            problem_.docs.release(first, last);
        }
    }

    size_t finish(size_t i) { return best_[i].finish(); }
    const Hit* hits(size_t i) const { return hits_.data() + i * (hits_.size() / best_.size()); }

  private:
    // Documents row, row + 1, … up to row_docs of them.
    void scan(size_t row) {
        const float* docs[cpu::row_docs];
        float squares[cpu::row_docs];
        for (size_t d = 0; d < cpu::row_docs; ++d) {
            docs[d] = problem_.docs.row(row + d, work_.data() + d * dim_);
        }
        kernels_.score_rows(queries_.data(), n_padded_, docs, dim_, scores_.data(), squares);
        for (size_t d = 0; d < cpu::row_docs; ++d) {
            const bool is_safe = squares[d] > 1e-25f && squares[d] < 1e30f;
            const float norm = is_safe ? std::sqrt(squares[d]) : 0.0f;
            const float* scores = scores_.data() + d * n_padded_;
            bool any = !is_safe;
            for (size_t i = 0; i < n_padded_; ++i) any |= may_reach(i, scores[i], norm);
            if (!any) continue;
            const double exact_norm = norm_of(docs[d]);
            for (size_t i = 0; i < best_.size(); ++i) {
                if (is_safe && !may_reach(i, scores[i], norm)) continue;
                add(i, docs[d], exact_norm, row + d);
            }
        }
    }

    bool may_reach(size_t i, float score, float norm) const {
        return !(score < slopes_[i] * norm + offsets_[i]);
    }

    void add(size_t i, const float* doc, double norm, size_t row) {
        const double dot = kernels_.dot(rows_.row(i), doc, dim_);
        const float score = canonical_score(dot, norms_[i], norm, problem_.metric);
        const auto id = static_cast<int64_t>(row);
        if (!(score >= best_[i].kth_score()) || exclusions_.contains(i, id)) return;
        if (best_[i].push({score, id})) raise(i, best_[i].kth_score());
    }

    // Canonical scores of query i below `score` do not matter from now on.
    void raise(size_t i, float score) {
        const double gamma = bound_.slope(1.0f);
        const double length = lengths_[i];
        const bool is_safe = length > 1e-15 && length < 1e15 && gamma < 0.25;
        if (!is_safe || std::isinf(score)) {
            slopes_[i] = 0.0f;
            offsets_[i] = -infinity;
            return;
        }
        // Twice gamma: for the score and for the norm, and more than the roundings here.
        constexpr double rounding = 0x1p-20;
        const double threshold = bound_.threshold(score);
        double slope = -2.0 * gamma * length * (1.0 + rounding);
        double offset = threshold - std::abs(threshold) * rounding;
        if (problem_.metric == Metric::cosine) {
            slope += length * (threshold - std::abs(threshold) * (2.0 * gamma + rounding));
            offset = 0.0;
        }
        slopes_[i] = rounded_down(slope);
        offsets_[i] = rounded_down(offset - 0x1p-100);
    }

    double norm_of(const float* row) const {
        return row_norm(row, dim_, problem_.metric, kernels_);
    }

    const SearchProblem& problem_;
    const cpu::Kernels& kernels_;
    const Exclusions& exclusions_;
    const size_t dim_;
    const ScanBound bound_;
    const FloatRows rows_;
    const size_t n_padded_;
    std::vector<float> work_;
    std::vector<float> queries_, slopes_, offsets_, scores_;  // of whole groups of queries
    std::vector<Hit> hits_;
    std::vector<TopK> best_;
    std::vector<double> norms_;    // by which scores are divided
    std::vector<double> lengths_;  // of the queries
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
