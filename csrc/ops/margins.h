// Margins of ragged lists of scores.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gplfast::ops {

enum class Reference { min, mean, max, first };

// The scores of query i are scores[indptr[i]] .. scores[indptr[i + 1] - 1].
struct RaggedScores {
    const float* scores;
    const int64_t* indptr;
};

// margins[j] = reference(positives of its query) - negatives.scores[j], rounded once. NaN in the
// positives makes the query's margins NaN. Every query with negatives has a positive.
void margins(const RaggedScores& positives, const RaggedScores& negatives, size_t n_queries,
             Reference reference, float* result);

}  // namespace gplfast::ops
