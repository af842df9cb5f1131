#include "ops/margins.h"

#include <cmath>

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

}  // namespace

void margins(const RaggedScores& positives, const RaggedScores& negatives, size_t n_queries,
             Reference reference, float* result) {
    for (size_t query = 0; query < n_queries; ++query) {
        const int64_t begin = negatives.indptr[query];
        const int64_t end = negatives.indptr[query + 1];
        if (begin == end) continue;
        const int64_t first = positives.indptr[query];
        const double value =
            reduce(positives.scores + first, positives.indptr[query + 1] - first, reference);
        for (int64_t j = begin; j < end; ++j) {
            result[j] = static_cast<float>(value - static_cast<double>(negatives.scores[j]));
        }
    }
}

}  // namespace gplfast::ops
