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
    QueryMargins(const MarginProblem& problem, float* margins, uint8_t* kept)
        : positives_(problem.positives),
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
        int64_t n_kept = 0;
        for (int64_t j = begin; j < end; ++j) {
            const double score = negatives_.scores[j];
            margins_[j] = static_cast<float>(value - score);
            kept_[j] = passes(j - begin, score, value);
            n_kept += kept_[j];
        }
        if (negatives_.groups) n_kept = drop_groups(query, begin, end);
        if (filters_.quota > 0 && n_kept > filters_.quota) draw(query, begin, end);
    }

  private:
    // NaN as a limit compares as false: that filter is off.
    bool passes(int64_t rank, double score, double value) {
        DropReason reason;
        if (std::isnan(value - score)) {
            reason = drop_nan;
        } else if (rank < filters_.first_rank || rank >= filters_.end_rank) {
            reason = drop_rank;
        } else if (score < filters_.min_score) {
            reason = drop_min_score;
        } else if (score > filters_.max_score) {
            reason = drop_max_score;
        } else if (score + filters_.absolute_margin > value) {
            reason = drop_absolute_margin;
        } else if (score > value - std::abs(value) * filters_.relative_margin) {
            reason = drop_relative_margin;
        } else {
            return true;
        }
        ++dropped_[reason];
        return false;
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

Dropped margins(const MarginProblem& problem, const std::function<void()>& poll, float* margins,
                uint8_t* kept) {
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
        QueryMargins query_margins(problem, margins, kept);
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
