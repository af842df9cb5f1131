// The canonical score: the float64 dot product in the fixed order of Kernels::dot, divided by the
// float64 norms for cosine, rounded once to float32.
#pragma once

#include <cmath>

namespace gplfast {

enum class Metric { inner_product, cosine };

// A zero row has cosine 0 with every row; a row with an infinity has no cosine (NaN).
inline float canonical_score(double dot, double norm_a, double norm_b, Metric metric) {
    if (metric == Metric::cosine) {
        const double norms = norm_a * norm_b;
        dot = norms == 0.0 ? 0.0 : dot / norms;
    }
    return static_cast<float>(dot) + 0.0f;  // -0 becomes +0: equal scores have equal bits
}

}  // namespace gplfast
