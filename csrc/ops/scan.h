// The scan that search and dedup share: packed float32 tiles, a proven bound on their error, and
// the loop that hands every pair which may reach a threshold to the caller for rescoring.
//
// The bound. With u = 2^-24 and dim <= 2^19, a float32 chain of dim products and sums differs from
// the exact dot product by at most gamma |q| |x| + dim 2^-149, gamma = n u / (1 - n u), n = dim
// (Higham, Accuracy and Stability of Numerical Algorithms, 3.1, with Cauchy-Schwarz). n = dim + 16
// covers, besides, the rounding of rows scaled to unit length (2), of the canonical float64 sum, of
// the norms, and of the comparison itself. It holds as long as no partial sum overflows, that is
// for |q| |x| <= 1e37; beyond, and for rows with infinities, every pair is rescored.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/canonical.h"
#include "common/integers.h"
#include "common/row_source.h"
#include "cpu/kernels.h"

namespace gplfast::ops {

// Rows of a source: a range of all of them, or of a list of row numbers.
struct Rows {
    const RowSource& source;
    const int64_t* list;  // nullptr: all rows
    size_t begin;
    size_t count;

    int64_t id(size_t i) const { return list ? list[begin + i] : static_cast<int64_t>(begin + i); }
    const float* row(size_t i, float* work) const {
        return source.row(static_cast<size_t>(id(i)), work);
    }
};

// Rows packed for scan_tile: blocks of `width` rows, each [dim][width], zeros behind the last row.
// For cosine they are scaled to unit length.
struct PackedRows {
    size_t count = 0;
    size_t dim = 0;
    size_t width = 0;
    std::vector<float> blocks;
    std::vector<double> norms;      // float64, of the rows as stored; NaN: scores with nothing
    std::vector<float> scan_norms;  // of the packed rows, rounded up; padded to whole blocks
    double max_scan_norm = 0.0;     // NaN norms left out
    std::vector<float> widened;     // a block of rows that are not stored as float32

    void pack(const Rows& rows, size_t width, Metric metric, const cpu::Kernels& kernels);
    size_t n_blocks() const { return ceil_div(count, width); }
    const float* block(size_t b) const { return blocks.data() + b * dim * width; }
};

class ScanBound {
  public:
    explicit ScanBound(size_t dim);

    // Per query: what scan_tile multiplies with a document's norm to get the error bound.
    float slope(float query_norm) const;

    // The threshold that scan_tile compares with, for pairs whose canonical score reaches `score`.
    float threshold(float score) const;

  private:
    double gamma_;
    double absolute_;
};

// Multiplies every error bound by `scale`. For the test that a bound too small loses answers.
void set_bound_scale_for_testing(double scale);
double bound_scale_for_testing();

// Calls on_candidate(query, doc) (positions in the packed rows) for every pair whose score may
// reach its query's threshold. `thresholds` has a value for each query, +inf in the padding, and
// may be raised by on_candidate as the scan goes on.
template <class OnCandidate>
void scan(const cpu::Kernels& kernels, const PackedRows& queries, const std::vector<float>& slopes,
          const PackedRows& docs, const float* thresholds, OnCandidate&& on_candidate) {
    constexpr double safe_product = 1e37;  // below it no partial sum overflows float32
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> no_threshold(queries.width, -infinity);
    uint32_t candidates[cpu::max_tile_queries];
    for (size_t tile = 0; tile < queries.n_blocks(); ++tile) {
        const size_t first_query = tile * queries.width;
        const size_t n_queries = std::min(queries.width, queries.count - first_query);
        bool is_safe = true;
        for (size_t i = 0; i < n_queries; ++i) {
            const double product = queries.scan_norms[first_query + i] * docs.max_scan_norm;
            is_safe = is_safe && !(product > safe_product);  // NaN rows are dropped later
        }
        const float* limits = is_safe ? thresholds + first_query : no_threshold.data();
        for (size_t panel = 0; panel < docs.n_blocks(); ++panel) {
            const size_t first_doc = panel * docs.width;
            if (!kernels.scan_tile(queries.block(tile), docs.block(panel), docs.dim, limits,
                                   slopes.data() + first_query, docs.scan_norms.data() + first_doc,
                                   candidates)) {
                continue;
            }
            const size_t n_docs = std::min(docs.width, docs.count - first_doc);
            const uint32_t valid = low_bits(n_docs);
            for (size_t i = 0; i < n_queries; ++i) {
                for (uint32_t bits = candidates[i] & valid; bits != 0; bits &= bits - 1) {
                    on_candidate(first_query + i, first_doc + std::countr_zero(bits));
                }
            }
        }
    }
}

// The slopes of all packed queries, padded to whole tiles.
std::vector<float> slopes_of(const PackedRows& queries, const ScanBound& bound);

// Documents per block: a multiple of the panel that stays in a core's L2 beside a query tile.
size_t block_docs_for(size_t dim, const cpu::Kernels& kernels);

}  // namespace gplfast::ops
