// One table of functions per instruction set. Plain data only: the ISA files include this header,
// and anything inline in it would be compiled for their instruction set and linked for all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gplfast::cpu {

struct Kernels {
    size_t tile_queries;  // queries that scan_tile scores at once; at most max_tile_queries
    size_t panel_docs;    // documents per panel; at most 32, one bit each

    // Scores tile_queries x panel_docs pairs in float32, approximately. Bit j of candidates[i] is
    // set unless score(i, j) < thresholds[i] - slopes[i] * norms[j]: NaN anywhere sets the bit.
    // queries is [dim][tile_queries], panel is [dim][panel_docs]. Returns the OR of candidates.
    uint32_t (*scan_tile)(const float* queries, const float* panel, size_t dim,
                          const float* thresholds, const float* slopes, const float* norms,
                          uint32_t* candidates);

    // The canonical dot product. Element i is multiplied in float64 (exactly) and added to lane
    // i mod 32 in ascending i; then lanes l and l + h are added for h = 16, 8, 4, 2, 1. The same
    // bits on every instruction set, and the order of a warp's butterfly on a GPU.
    double (*dot)(const float* a, const float* b, size_t dim);
};

constexpr size_t max_tile_queries = 16;
constexpr size_t max_panel_docs = 32;

extern const Kernels kernels_scalar;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace gplfast::cpu
