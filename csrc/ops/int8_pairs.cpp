#include <algorithm>
#include <bit>

#include "common/integers.h"
#include "ops/int8_panels.h"
#include "ops/paired_bytes.h"
#include "ops/pairs.h"

namespace gplfast::ops {
namespace {

// How many candidates of a tile are scored one by one, at 45 ns each, before the tile is scanned
// whole, which takes 390 ns at dim 384.
constexpr size_t max_single_candidates = 8;

struct Counts {
    uint64_t candidates = 0;  // pairs that the first bytes leave
    uint64_t undecided = 0;   // pairs that all bytes leave
};

class Int8Pairs : public PairScanner {
  public:
    Int8Pairs(const DedupProblem& problem, const std::vector<int64_t>& rows,
              const cpu::Kernels& kernels, const Quantizer& quantizer, const cpu::Int8Kernels& int8,
              size_t depth, const std::function<void()>& poll)
        : problem_(problem),
          list_(rows),
          kernels_(kernels),
          int8_(int8),
          rows_(problem, rows, kernels, quantizer, int8, depth, poll) {}

    void set_later(size_t begin, size_t end) override { later_.pack(rows_, begin, end, int8_); }

    void find(size_t begin, size_t end, std::vector<Pair>& pairs) const override {
        visit(begin, end, [&](size_t i, size_t j, int32_t dot) {
            if (is_similar(i, j, dot)) pairs.push_back({Index(j), Index(i)});
        });
    }

    size_t run_rows() const override { return 1024; }

    Counts count(size_t begin, size_t end) const {
        Counts counts;
        visit(begin, end, [&](size_t i, size_t j, int32_t dot) {
            const auto [lower, upper] = rows_.bounds(i, j, dot);
            ++counts.candidates;
            counts.undecided += lower < problem_.threshold && upper >= problem_.threshold;
        });
        return counts;
    }

  private:
    // Calls on_candidate(later, earlier, dot of all bytes) for the pairs that may be similar.
    template <class OnCandidate>
    void visit(size_t begin, size_t end, OnCandidate&& on_candidate) const {
        alignas(64) int32_t scores[cpu::max_int8_panel_docs * cpu::max_int8_tile_queries];
        uint32_t candidates[cpu::max_int8_panel_docs];
        cpu::Int8Block blocks[cpu::max_int8_panel_docs];
        const KernelState state(int8_);
        const size_t width = int8_.tile_queries;
        for (size_t first = begin; first < end; first += int8_.panel_docs) {
            const cpu::Int8Docs panel = rows_.panel(first, blocks);
            set_extremes(panel, int8_, blocks);
            const size_t n_docs = std::min(int8_.panel_docs, end - first);
            // The first tile with a row behind `first`.
            const size_t skipped =
                first < later_.begin() ? 0 : (first + 1 - later_.begin()) / width;
            for (size_t t = skipped; t * width < later_.count(); ++t) {
                const cpu::Int8Queries tile = later_.tile(rows_, t);
                int8_.multiply(tile, panel, rows_.depth(), scores);
                if (!int8_.find_candidates(tile, panel, scores, candidates)) continue;
                visit_tile(t, first, n_docs, scores, candidates, on_candidate);
            }
        }
    }

    template <class OnCandidate>
    void visit_tile(size_t t, size_t first, size_t n_docs, int32_t* scores, uint32_t* candidates,
                    OnCandidate&& on_candidate) const {
        const size_t width = int8_.tile_queries;
        const size_t n = std::min(width, later_.count() - t * width);
        const uint32_t valid = low_bits(n);
        size_t n_candidates = 0;
        for (size_t d = 0; d < n_docs; ++d) n_candidates += std::popcount(candidates[d] & valid);
        bool is_whole = rows_.depth() == rows_.stride();
        if (!is_whole && n_candidates > max_single_candidates) {
            int8_.multiply(later_.whole_tile(rows_, t), rows_.panel(first, nullptr), rows_.stride(),
                           scores);
            is_whole = true;
        }
        for (size_t d = 0; d < n_docs; ++d) {
            for (uint32_t bits = candidates[d] & valid; bits != 0; bits &= bits - 1) {
                const size_t q = std::countr_zero(bits);
                const size_t i = later_.begin() + t * width + q;
                const size_t j = first + d;
                if (j >= i || rows_.is_nan(i) || rows_.is_nan(j)) continue;
                on_candidate(i, j, is_whole ? scores[d * width + q] : rows_.dot(i, j));
            }
        }
    }

    bool is_similar(size_t i, size_t j, int32_t dot) const {
        const auto [lower, upper] = rows_.bounds(i, j, dot);
        if (upper < problem_.threshold) return false;
        if (lower >= problem_.threshold) return true;
        const size_t dim = problem_.docs.dim();
        std::vector<float> work(problem_.docs.is_float32() ? 0 : 2 * dim);
        const double exact = kernels_.dot(row(j, work.data()), row(i, work.data() + dim), dim);
        return canonical_score(exact, rows_.norm(j), rows_.norm(i), problem_.metric) >=
               problem_.threshold;
    }

    const float* row(size_t i, float* work) const {
        return problem_.docs.row(static_cast<size_t>(list_[i]), work);
    }

    const DedupProblem& problem_;
    const std::vector<int64_t>& list_;
    const cpu::Kernels& kernels_;
    const cpu::Int8Kernels& int8_;
    const PairedBytes rows_;
    PackedQueries later_;
};

// What a scan is expected to cost a pair. The unit is a byte of depth in a tile, 1/485 ns on a Zen
// 5 core; the constants were measured there at dim 384.
constexpr double tile_cost = 30.0;       // of a tile's limits, 18 ns
constexpr double candidate_cost = 20e3;  // 45 ns
constexpr double rescore_cost = 25e3;    // 50 ns
constexpr double float_cost = 4.0;       // of an element in a float32 scan

size_t next_depth(size_t depth) {
    return (depth - 1) * 3 / 4 / cpu::int8_depth * cpu::int8_depth;
}

// The depth at which the scan is expected to be cheapest, from all pairs of a sample of the rows; 0
// when the float32 scan is.
size_t choose_depth(const DedupProblem& problem, const std::vector<int64_t>& rows,
                    const cpu::Kernels& kernels, const Quantizer& quantizer,
                    const cpu::Int8Kernels& int8, const std::function<void()>& poll) {
    const size_t n = std::min(rows.size(), std::clamp<size_t>(rows.size() / 8, 32, 1024));
    std::vector<int64_t> sample;
    for (size_t i = 0; i < n; ++i) sample.push_back(rows[i * rows.size() / n]);
    const double n_pairs = 0.5 * static_cast<double>(n) * static_cast<double>(n);
    const double whole_cost = static_cast<double>(quantizer.stride()) + tile_cost;
    double least = whole_cost;
    size_t best = quantizer.stride();
    for (size_t depth = best; depth > 0; depth = next_depth(depth)) {
        Int8Pairs pairs(problem, sample, kernels, quantizer, int8, depth, poll);
        pairs.set_later(0, n);
        const Counts counts = pairs.count(0, n);
        const double candidates = static_cast<double>(counts.candidates) / n_pairs;
        if (depth == quantizer.stride()) {
            const double undecided = static_cast<double>(counts.undecided) / n_pairs;
            if (undecided * rescore_cost > float_cost * whole_cost) return 0;
            continue;
        }
        const double cost = static_cast<double>(depth) + tile_cost +
                            std::min(candidates * candidate_cost, whole_cost);
        if (cost > 2.0 * least) break;
        if (cost < least) {
            least = cost;
            best = depth;
        }
    }
    return best;
}

}  // namespace

std::unique_ptr<PairScanner> int8_pairs(const DedupProblem& problem,
                                        const std::vector<int64_t>& rows,
                                        const cpu::Kernels& kernels, const cpu::Int8Kernels& int8,
                                        bool always, const std::function<void()>& poll) {
    const Quantizer quantizer(sampled_mean(problem.docs, problem.metric, kernels), problem.metric,
                              kernels, int8);
    size_t depth = problem.scan_depth;
    if (depth == 0) depth = choose_depth(problem, rows, kernels, quantizer, int8, poll);
    if (depth == 0 && !always) return nullptr;
    return std::make_unique<Int8Pairs>(problem, rows, kernels, quantizer, int8,
                                       depth ? depth : quantizer.stride(), poll);
}

}  // namespace gplfast::ops
