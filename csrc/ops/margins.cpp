#include "ops/margins.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "common/philox.h"

namespace gplfast::ops {
namespace {

// In float64, where the sum of a mean is as good as exact and one subtraction rounds once.
double reduce(const float* scores, int64_t n, Reference reference) {
    double result = scores[0];
    if (reference == Reference::first) return result;
    for (int64_t i = 1; i < n; ++i) {
        const double score = scores[i];
        if (reference == Reference::mean) {
            result += score;
        } else if (std::isnan(score) ||
                   (reference == Reference::min ? score < result : score > result)) {
            result = score;
        }
        if (std::isnan(result)) return result;
    }
    return reference == Reference::mean ? result / static_cast<double>(n) : result;
}

// One query at a time; its buffers are kept from query to query.
class QueryMargins {
  public:
    QueryMargins(const MarginProblem& problem, const cpu::Kernels& kernels, float* margins,
                 uint8_t* kept)
        : kernels_(kernels),
          positives_(problem.positives),
          negatives_(problem.negatives),
          filters_(problem.filters),
          reference_(problem.reference),
          margins_(margins),
          kept_(kept) {}

    const Dropped& dropped() const { return dropped_; }

    void run(int64_t query) {
        const int64_t begin = negatives_.indptr[query];
        const int64_t end = negatives_.indptr[query + 1];
        if (begin == end) return;
        const int64_t first = positives_.indptr[query];
        const double value =
            reduce(positives_.scores + first, positives_.indptr[query + 1] - first, reference_);
        const int64_t first_in = begin + std::min(filters_.first_rank, end - begin);
        const int64_t end_in = begin + std::min(filters_.end_rank, end - begin);
        pass_over(begin, first_in, value);
        int64_t n_kept = choose(first_in, end_in, value);
        pass_over(end_in, end, value);
        if (negatives_.groups) n_kept = drop_groups(query, begin, end);
        if (filters_.quota > 0 && n_kept > filters_.quota) draw(query, begin, end);
    }

  private:
    // Margins and choices within the ranks; returns how many stay.
    int64_t choose(int64_t begin, int64_t end, double value) {
        const cpu::MarginLimits limits = {value, filters_.min_score, filters_.max_score,
                                          filters_.absolute_margin,
                                          value - std::abs(value) * filters_.relative_margin};
        const Left left = apply(begin, end, limits);
        uint64_t before = static_cast<uint64_t>(end - begin);
        constexpr DropReason reasons[] = {drop_nan, drop_min_score, drop_max_score,
                                          drop_absolute_margin, drop_relative_margin};
        for (size_t i = 0; i < left.size(); ++i) {
            dropped_[reasons[i]] += before - left[i];
            before = left[i];
        }
        return static_cast<int64_t>(before);
    }

    // Margins outside of the ranks, where nothing stays.
    void pass_over(int64_t begin, int64_t end, double value) {
        if (begin == end) return;
        constexpr double off = MarginFilters::off;
        const uint64_t numbers = apply(begin, end, {value, off, off, off, off})[0];
        dropped_[drop_nan] += static_cast<uint64_t>(end - begin) - numbers;
        dropped_[drop_rank] += numbers;
        std::fill(kept_ + begin, kept_ + end, uint8_t{0});
    }

    using Left = std::array<uint64_t, cpu::n_margin_limits>;
    Left apply(int64_t begin, int64_t end, const cpu::MarginLimits& limits) {
        Left left{};
        kernels_.margins(negatives_.scores + begin, static_cast<size_t>(end - begin), limits,
                         margins_ + begin, kept_ + begin, left.data());
        return left;
    }

    // Drops what is of a positive's group, or of the group of a negative before it that stays.
    int64_t drop_groups(int64_t query, int64_t begin, int64_t end) {
        if (positives_.groups) {
            seen_.assign(positives_.groups + positives_.indptr[query],
                         positives_.groups + positives_.indptr[query + 1]);
            std::sort(seen_.begin(), seen_.end());
            for (int64_t j = begin; j < end; ++j) {
                if (kept_[j] &&
                    std::binary_search(seen_.begin(), seen_.end(), negatives_.groups[j])) {
                    drop(j, drop_positive_group);
                }
            }
        }
        collect(begin, end);
        std::sort(places_.begin(), places_.end(), [this](int64_t a, int64_t b) {
            return std::pair(negatives_.groups[a], a) < std::pair(negatives_.groups[b], b);
        });
        int64_t n_kept = 0;
        for (size_t i = 0; i < places_.size(); ++i) {
            if (i > 0 && negatives_.groups[places_[i]] == negatives_.groups[places_[i - 1]]) {
                drop(places_[i], drop_negative_group);
            } else {
                ++n_kept;
            }
        }
        return n_kept;
    }

    // Keeps `quota` of what is left: the largest keys, the earlier of equal ones.
    void draw(int64_t query, int64_t begin, int64_t end) {
        collect(begin, end);
        keys_.resize(static_cast<size_t>(end - begin));
        for (const int64_t j : places_)
            keys_[j - begin] = key(query, j - begin, negatives_.scores[j]);
        const auto quota = places_.begin() + filters_.quota;
        std::nth_element(places_.begin(), quota, places_.end(), [&](int64_t a, int64_t b) {
            const double key_a = keys_[a - begin], key_b = keys_[b - begin];
            return key_a > key_b || (key_a == key_b && a < b);
        });
        std::for_each(quota, places_.end(), [this](int64_t j) { drop(j, drop_quota); });
    }

    double key(int64_t query, int64_t rank, double score) const {
        if (filters_.sampling == Sampling::top) return score;
        const uint64_t bits =
            philox(filters_.seed, static_cast<uint64_t>(query), static_cast<uint64_t>(rank) + 1);
        const double uniform = (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
        if (filters_.sampling == Sampling::uniform) return uniform;
        // The largest of score / temperature plus Gumbel noise: without replacement, in proportion
        // to exp(score / temperature).
        return score / filters_.temperature - std::log(-std::log(uniform));
    }

    void collect(int64_t begin, int64_t end) {
        places_.clear();
        for (int64_t j = begin; j < end; ++j) {
            if (kept_[j]) places_.push_back(j);
        }
    }

    void drop(int64_t j, DropReason reason) {
        kept_[j] = 0;
        ++dropped_[reason];
    }

    const cpu::Kernels& kernels_;
    const RaggedScores positives_;
    const RaggedScores negatives_;
    const MarginFilters filters_;
    const Reference reference_;
    float* margins_;
    uint8_t* kept_;
    Dropped dropped_{};
    std::vector<int64_t> seen_, places_;
    std::vector<double> keys_;
};

}  // namespace

Dropped margins(const MarginProblem& problem, const cpu::Kernels& kernels,
                const std::function<void()>& poll, float* margins, uint8_t* kept) {
    constexpr size_t task_entries = size_t{1} << 18;
    const int64_t* indptr = problem.negatives.indptr;
    const int64_t* end = indptr + problem.n_queries + 1;
    const auto n_tasks = ceil_div(static_cast<size_t>(indptr[problem.n_queries]), task_entries);
    // The first query that starts at or behind each multiple of task_entries.
    const auto first_query = [&](size_t task) {
        const auto entry = static_cast<int64_t>(task * task_entries);
        return std::min<int64_t>(std::lower_bound(indptr, end, entry) - indptr,
                                 static_cast<int64_t>(problem.n_queries));
    };
    Dropped total{};
    std::mutex mutex;
    StopFlag stop;
    const auto run_task = [&](size_t task) {
        QueryMargins query_margins(problem, kernels, margins, kept);
        const int64_t last =
            task + 1 == n_tasks ? static_cast<int64_t>(problem.n_queries) : first_query(task + 1);
        for (int64_t query = first_query(task); query < last; ++query) query_margins.run(query);
        const std::lock_guard lock(mutex);
        for (size_t i = 0; i < n_drop_reasons; ++i) total[i] += query_margins.dropped()[i];
    };
    parallel_for(n_tasks, problem.n_threads, run_task, poll, stop);
    return total;
}

}  // namespace gplfast::ops
