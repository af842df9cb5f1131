#include <algorithm>
#include <limits>

#include "ops/pairs.h"
#include "ops/scan.h"

namespace gplfast::ops {
namespace {

class FloatPairs : public PairScanner {
  public:
    FloatPairs(const DedupProblem& problem, const std::vector<int64_t>& rows,
               const cpu::Kernels& kernels)
        : problem_(problem),
          rows_(rows),
          kernels_(kernels),
          bound_(problem.docs.dim()),
          threshold_(bound_.threshold(problem.threshold)) {}

    void set_later(size_t begin, size_t end) override {
        later_begin_ = begin;
        later_.pack({problem_.docs, rows_.data(), begin, end - begin}, kernels_.tile_queries,
                    problem_.metric, kernels_);
        slopes_ = slopes_of(later_, bound_);
        thresholds_.assign(slopes_.size(), std::numeric_limits<float>::infinity());
        std::fill_n(thresholds_.begin(), later_.count, threshold_);
    }

    void find(size_t begin, size_t end, std::vector<Pair>& pairs) const override {
        PackedRows earlier;
        std::vector<float> work_a(problem_.docs.dim());
        std::vector<float> work_b(problem_.docs.dim());
        earlier.pack({problem_.docs, rows_.data(), begin, end - begin}, kernels_.panel_docs,
                     problem_.metric, kernels_);
        scan(kernels_, later_, slopes_, earlier, thresholds_.data(), [&](size_t i, size_t j) {
            const auto later = static_cast<Index>(later_begin_ + i);
            const auto first = static_cast<Index>(begin + j);
            if (first >= later) return;
            const double dot = kernels_.dot(row(first, work_a.data()), row(later, work_b.data()),
                                            problem_.docs.dim());
            const float score =
                canonical_score(dot, earlier.norms[j], later_.norms[i], problem_.metric);
            if (score >= problem_.threshold) pairs.push_back({first, later});
        });
    }

    size_t run_rows() const override { return block_docs_for(problem_.docs.dim(), kernels_); }

  private:
    const float* row(Index i, float* work) const {
        return problem_.docs.row(static_cast<size_t>(rows_[i]), work);
    }

    const DedupProblem& problem_;
    const std::vector<int64_t>& rows_;
    const cpu::Kernels& kernels_;
    const ScanBound bound_;
    const float threshold_;
    size_t later_begin_ = 0;
    PackedRows later_;
    std::vector<float> slopes_;
    std::vector<float> thresholds_;
};

}  // namespace

std::unique_ptr<PairScanner> float_pairs(const DedupProblem& problem,
                                         const std::vector<int64_t>& rows,
                                         const cpu::Kernels& kernels) {
    return std::make_unique<FloatPairs>(problem, rows, kernels);
}

}  // namespace gplfast::ops
