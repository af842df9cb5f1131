// Margins of ragged lists of scores, and which negatives stay.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

#include "cpu/kernels.h"

namespace gplfast::ops {

enum class Reference { min, mean, max, first };
enum class Sampling { top, uniform, weighted };

// The scores of query i are scores[indptr[i]] .. scores[indptr[i + 1] - 1]; so are the groups, null
// for none.
struct RaggedScores {
    const float* scores;
    const int64_t* indptr;
    const int64_t* groups = nullptr;
};

// In the order in which they are applied; a negative counts for the first that drops it.
struct MarginFilters {
    static constexpr double off = std::numeric_limits<double>::quiet_NaN();
    int64_t first_rank = 0;
    int64_t end_rank = std::numeric_limits<int64_t>::max();
    double min_score = off;
    double max_score = off;
    double absolute_margin = off;
    double relative_margin = off;
    int64_t quota = 0;  // per query; 0: all
    Sampling sampling = Sampling::top;
    double temperature = 1.0;
    uint64_t seed = 0;
};

// What drops a negative; the names in the same order.
enum DropReason : size_t {
    drop_nan,
    drop_rank,
    drop_min_score,
    drop_max_score,
    drop_absolute_margin,
    drop_relative_margin,
    drop_positive_group,
    drop_negative_group,
    drop_quota,
    n_drop_reasons
};
constexpr std::array<const char*, n_drop_reasons> drop_reason_names = {"nan",
                                                                       "rank",
                                                                       "min_score",
                                                                       "max_score",
                                                                       "absolute_margin",
                                                                       "relative_margin",
                                                                       "positive_group",
                                                                       "negative_group",
                                                                       "quota"};
using Dropped = std::array<uint64_t, n_drop_reasons>;

struct MarginProblem {
    RaggedScores positives;
    RaggedScores negatives;
    size_t n_queries;
    Reference reference;
    MarginFilters filters;
    size_t n_threads;
};

// margins[j] = reference(positives of its query) - negatives.scores[j], rounded once; NaN in the
// positives makes the query's margins NaN. kept[j] is 1 or 0. Every query with negatives has a
// positive.
Dropped margins(const MarginProblem& problem, const cpu::Kernels& kernels,
                const std::function<void()>& poll, float* margins, uint8_t* kept);

}  // namespace gplfast::ops
