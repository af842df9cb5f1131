// One table of functions per instruction set. Plain data only: the ISA files include this header,
// and anything inline in it would be compiled for their instruction set and linked for all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gplfast::cpu {

// What a negative's score must pass, in this order; comparisons with NaN are false, so NaN is off.
struct MarginLimits {
    double reference;        // dropped where reference - score is NaN
    double min_score;        // ... score < min_score
    double max_score;        // ... score > max_score
    double absolute_margin;  // ... score + absolute_margin > reference
    double highest;          // ... score > highest
};
constexpr size_t n_margin_limits = 5;

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

    // n float16 numbers as float32, exactly (NaN stays NaN).
    void (*widen)(const uint16_t* halves, size_t n, float* out);

    // Scores rows as they lie in memory, approximately: scores[d * n_queries + q] in float32, and
    // squares[d] of row d with itself. n_queries is a multiple of row_queries, queries is
    // [n_queries][dim], docs are row_docs rows. May be null: then only scan_tile is there.
    void (*score_rows)(const float* queries, size_t n_queries, const float* const* docs, size_t dim,
                       float* scores, float* squares);

    // out[i * dot_tile_columns + j] = `dot` of row i of a and row j of b, which are widened to
    // float64 and padded with zeros to `dim`, a multiple of dot_tile_depth.
    void (*dot_tile)(const double* a, const double* b, size_t dim, double* out);

    // Float32 multiply-adds on registers alone, in as many chains as the units take: the peak that
    // `gplfast bench` measures shares of. `value` is the factor, and receives a result. Returns
    // the number of multiply-adds.
    uint64_t (*multiply_add)(uint64_t n_rounds, float* value);

    // margins[j] = reference - scores[j], subtracted in float64 and rounded once to float32;
    // kept[j] is 1 where all limits are passed, else 0. left[i] grows by how many pass limits 0
    // to i.
    void (*margins)(const float* scores, size_t n, const MarginLimits& limits, float* margins,
                    uint8_t* kept, uint64_t* left);
};

constexpr size_t row_queries = 4;
constexpr size_t row_docs = 4;
constexpr size_t dot_tile_rows = 2;
constexpr size_t dot_tile_columns = 3;
constexpr size_t dot_tile_depth = 32;

constexpr size_t max_tile_queries = 16;
constexpr size_t max_panel_docs = 32;

// The integer scan. A row becomes one byte an element, byte = int8_zero + round(y / scale) within
// +-127, where y is the row times a factor, less a mean, rotated. Rows are padded with int8_zero to
// a stride that is a multiple of int8_depth.
constexpr int32_t int8_zero = 128;
constexpr size_t int8_depth = 64;
constexpr size_t max_int8_dim = size_t{1} << 15;  // sums of more products may leave int32
constexpr size_t max_int8_tile_queries = 32;
constexpr size_t max_int8_panel_docs = 32;

struct Int8Row {
    float scale;
    float largest;          // |y|'s largest element
    float square_norm;      // |y|^2; not finite when the row is not
    float square_residual;  // |y - scale (byte - int8_zero)|^2
    int32_t sum;            // of byte - int8_zero
};

// A tile of queries. A pair is a candidate unless
//     score < thresholds[query] inverse_scales[doc] - norms[query] residuals[doc]
//             - residuals[query] norms[doc];
// NaN anywhere makes it one.
struct Int8Queries {
    const int8_t* bytes;      // [depth / 4][tile_queries][4], without int8_zero
    const int32_t* offsets;   // what a score starts from
    const float* thresholds;  // each [tile_queries], as are the next two
    const float* norms;
    const float* residuals;
};

// What the documents of a block have at least and at most; padding need not count.
struct Int8Block {
    float min_inverse_scale;
    float max_inverse_scale;
    float max_residual;
    float max_norm;
};

// A panel of documents.
struct Int8Docs {
    const uint8_t* bytes;         // [panel_docs][row_stride]
    size_t row_stride;            // bytes from a row to the next, at least the depth of a product
    const float* inverse_scales;  // each [panel_docs], as are the next two; none is NaN or negative
    const float* residuals;       // inverse scales must be finite, and these not -inf
    const float* norms;
    const Int8Block* blocks;  // [panel_docs / block_docs]
};

struct Int8Kernels {
    const Int8Kernels* narrow;  // for few queries, with tiles of one; may be null
    size_t tile_queries;
    size_t panel_docs;
    size_t block_docs;  // panel_docs is a multiple; 0: Int8Docs::blocks is not looked at

    // Called by a thread before and after its calls of multiply. Null: nothing to do.
    void (*begin)();
    void (*end)();

    // scores[doc * tile_queries + query] = offsets[query] + sum of doc byte times query byte over
    // the first `depth` bytes (a multiple of int8_depth), exactly, for depth <= 2^15.
    void (*multiply)(const Int8Queries& queries, const Int8Docs& docs, size_t depth,
                     int32_t* scores);

    // Whether there is a candidate among these scores. If so, bit `query` of candidates[doc] says
    // whether the pair is one; if not, candidates is not written.
    bool (*find_candidates)(const Int8Queries& queries, const Int8Docs& docs, const int32_t* scores,
                            uint32_t* candidates);

    // Quantises row * factor - mean, its elements multiplied by signs (+-1) and rotated by
    // Walsh-Hadamard matrices on the diagonal: as many of size 256 as fit, then of 64, 16, 4 and
    // 1. Each stage of a transform rounds once. `work` has room for `stride` floats and holds the
    // rotated row afterwards.
    Int8Row (*quantize)(const float* row, float factor, const float* mean, const float* signs,
                        size_t dim, size_t stride, float* work, uint8_t* bytes);

    // As Kernels::multiply_add, for the products of bytes that multiply is made of, between begin
    // and end. Null in a table for few queries.
    uint64_t (*multiply_add)(uint64_t n_rounds, int32_t* value);
};

extern const Kernels kernels_scalar;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Int8Kernels kernels_avx512_vnni;
extern const Int8Kernels kernels_avx512_vnni_narrow;
extern const Int8Kernels kernels_amx_int8;

}  // namespace gplfast::cpu
