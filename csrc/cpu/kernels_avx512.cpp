// AVX-512F. Only immintrin.h and our plain headers may be included here (the ISA rule).
#include <immintrin.h>

#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

// 14 x 2 accumulators, 2 panel vectors and a broadcast use 31 of the 32 registers.
constexpr size_t n_queries = 14;
constexpr size_t n_docs = 32;

uint32_t scan_tile(const float* queries, const float* panel, size_t dim, const float* thresholds,
                   const float* slopes, const float* norms, uint32_t* candidates) {
    __m512 scores[n_queries][2];
#pragma GCC unroll 14
    for (size_t i = 0; i < n_queries; ++i) {
        scores[i][0] = _mm512_setzero_ps();
        scores[i][1] = _mm512_setzero_ps();
    }
    for (size_t k = 0; k < dim; ++k) {
        const __m512 docs0 = _mm512_loadu_ps(panel + k * n_docs);
        const __m512 docs1 = _mm512_loadu_ps(panel + k * n_docs + 16);
#pragma GCC unroll 14
        for (size_t i = 0; i < n_queries; ++i) {
            const __m512 query = _mm512_set1_ps(queries[k * n_queries + i]);
            scores[i][0] = _mm512_fmadd_ps(query, docs0, scores[i][0]);
            scores[i][1] = _mm512_fmadd_ps(query, docs1, scores[i][1]);
        }
    }
    const __m512 norms0 = _mm512_loadu_ps(norms);
    const __m512 norms1 = _mm512_loadu_ps(norms + 16);
    uint32_t any = 0;
#pragma GCC unroll 14
    for (size_t i = 0; i < n_queries; ++i) {
        const __m512 threshold = _mm512_set1_ps(thresholds[i]);
        const __m512 slope = _mm512_set1_ps(slopes[i]);
        const __m512 limit0 = _mm512_fnmadd_ps(slope, norms0, threshold);
        const __m512 limit1 = _mm512_fnmadd_ps(slope, norms1, threshold);
        const __mmask16 bits0 = _mm512_cmp_ps_mask(scores[i][0], limit0, _CMP_NLT_UQ);
        const __mmask16 bits1 = _mm512_cmp_ps_mask(scores[i][1], limit1, _CMP_NLT_UQ);
        candidates[i] = static_cast<uint32_t>(bits0) | static_cast<uint32_t>(bits1) << 16;
        any |= candidates[i];
    }
    return any;
}

inline void add_products(const float* a, const float* b, __m512d* lanes) {
#pragma GCC unroll 4
    for (size_t l = 0; l < 4; ++l) {
        const __m512d wide_a = _mm512_cvtps_pd(_mm256_loadu_ps(a + 8 * l));
        const __m512d wide_b = _mm512_cvtps_pd(_mm256_loadu_ps(b + 8 * l));
        lanes[l] = _mm512_fmadd_pd(wide_a, wide_b, lanes[l]);  // the product is exact either way
    }
}

inline double sum_lanes(__m512d* lanes) {
    lanes[0] = _mm512_add_pd(lanes[0], lanes[2]);
    lanes[1] = _mm512_add_pd(lanes[1], lanes[3]);
    const __m512d eight = _mm512_add_pd(lanes[0], lanes[1]);
    const __m256d four =
        _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

double dot(const float* a, const float* b, size_t dim) {
    __m512d lanes[4];
#pragma GCC unroll 4
    for (size_t l = 0; l < 4; ++l) lanes[l] = _mm512_setzero_pd();
    size_t i = 0;
    for (; i + 32 <= dim; i += 32) add_products(a + i, b + i, lanes);
    if (i < dim) {
        float last_a[32] = {};
        float last_b[32] = {};
        for (size_t l = 0; i + l < dim; ++l) {
            last_a[l] = a[i + l];
            last_b[l] = b[i + l];
        }
        add_products(last_a, last_b, lanes);
    }
    return sum_lanes(lanes);
}

// 24 accumulators: two rows of 32 lanes against three.
void dot_tile(const double* a, const double* b, size_t dim, double* out) {
    __m512d lanes[dot_tile_rows][dot_tile_columns][4];
#pragma GCC unroll 4
    for (size_t l = 0; l < 4; ++l) {
#pragma GCC unroll 2
        for (size_t i = 0; i < dot_tile_rows; ++i) {
#pragma GCC unroll 3
            for (size_t j = 0; j < dot_tile_columns; ++j) lanes[i][j][l] = _mm512_setzero_pd();
        }
    }
    for (size_t k = 0; k < dim; k += 32) {
#pragma GCC unroll 4
        for (size_t l = 0; l < 4; ++l) {
            const __m512d a0 = _mm512_loadu_pd(a + k + 8 * l);
            const __m512d a1 = _mm512_loadu_pd(a + dim + k + 8 * l);
#pragma GCC unroll 3
            for (size_t j = 0; j < dot_tile_columns; ++j) {
                const __m512d column = _mm512_loadu_pd(b + j * dim + k + 8 * l);
                lanes[0][j][l] = _mm512_fmadd_pd(a0, column, lanes[0][j][l]);
                lanes[1][j][l] = _mm512_fmadd_pd(a1, column, lanes[1][j][l]);
            }
        }
    }
#pragma GCC unroll 2
    for (size_t i = 0; i < dot_tile_rows; ++i) {
#pragma GCC unroll 3
        for (size_t j = 0; j < dot_tile_columns; ++j) {
            out[i * dot_tile_columns + j] = sum_lanes(lanes[i][j]);
        }
    }
}

void widen(const uint16_t* halves, size_t n, float* out) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 there = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
        uint16_t last[16] = {};
        const uint16_t* from = halves + i;
        if (n - i < 16) {  // AVX-512F alone has no masked load of 16 bits
            for (size_t l = 0; l < n - i; ++l) last[l] = from[l];
            from = last;
        }
        const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        _mm512_mask_storeu_ps(out + i, there, _mm512_cvtph_ps(sixteen));
    }
}

}  // namespace

const Kernels kernels_avx512 = {n_queries, n_docs, scan_tile, dot, widen, dot_tile};

}  // namespace gplfast::cpu
