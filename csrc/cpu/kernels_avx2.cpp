// AVX2, FMA and F16C. Only immintrin.h and our plain headers may be included here (the ISA rule).
#include <immintrin.h>

#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

// 6 x 2 accumulators, 2 panel vectors and a broadcast use 15 of the 16 registers.
constexpr size_t n_queries = 6;
constexpr size_t n_docs = 16;

uint32_t scan_tile(const float* queries, const float* panel, size_t dim, const float* thresholds,
                   const float* slopes, const float* norms, uint32_t* candidates) {
    __m256 scores[n_queries][2];
#pragma GCC unroll 6
    for (size_t i = 0; i < n_queries; ++i) {
        scores[i][0] = _mm256_setzero_ps();
        scores[i][1] = _mm256_setzero_ps();
    }
    for (size_t k = 0; k < dim; ++k) {
        const __m256 docs0 = _mm256_loadu_ps(panel + k * n_docs);
        const __m256 docs1 = _mm256_loadu_ps(panel + k * n_docs + 8);
#pragma GCC unroll 6
        for (size_t i = 0; i < n_queries; ++i) {
            const __m256 query = _mm256_broadcast_ss(queries + k * n_queries + i);
            scores[i][0] = _mm256_fmadd_ps(query, docs0, scores[i][0]);
            scores[i][1] = _mm256_fmadd_ps(query, docs1, scores[i][1]);
        }
    }
    const __m256 norms0 = _mm256_loadu_ps(norms);
    const __m256 norms1 = _mm256_loadu_ps(norms + 8);
    uint32_t any = 0;
#pragma GCC unroll 6
    for (size_t i = 0; i < n_queries; ++i) {
        const __m256 threshold = _mm256_broadcast_ss(thresholds + i);
        const __m256 slope = _mm256_broadcast_ss(slopes + i);
        const __m256 limit0 = _mm256_fnmadd_ps(slope, norms0, threshold);
        const __m256 limit1 = _mm256_fnmadd_ps(slope, norms1, threshold);
        const auto bits0 = _mm256_movemask_ps(_mm256_cmp_ps(scores[i][0], limit0, _CMP_NLT_UQ));
        const auto bits1 = _mm256_movemask_ps(_mm256_cmp_ps(scores[i][1], limit1, _CMP_NLT_UQ));
        candidates[i] = static_cast<uint32_t>(bits0) | static_cast<uint32_t>(bits1) << 8;
        any |= candidates[i];
    }
    return any;
}

inline void add_products(const float* a, const float* b, __m256d* lanes) {
#pragma GCC unroll 8
    for (size_t l = 0; l < 8; ++l) {
        const __m256d wide_a = _mm256_cvtps_pd(_mm_loadu_ps(a + 4 * l));
        const __m256d wide_b = _mm256_cvtps_pd(_mm_loadu_ps(b + 4 * l));
        lanes[l] = _mm256_fmadd_pd(wide_a, wide_b, lanes[l]);  // the product is exact either way
    }
}

inline double sum_lanes(__m256d* lanes) {
#pragma GCC unroll 4
    for (size_t l = 0; l < 4; ++l) lanes[l] = _mm256_add_pd(lanes[l], lanes[l + 4]);
    lanes[0] = _mm256_add_pd(lanes[0], lanes[2]);
    lanes[1] = _mm256_add_pd(lanes[1], lanes[3]);
    const __m256d four = _mm256_add_pd(lanes[0], lanes[1]);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

double dot(const float* a, const float* b, size_t dim) {
    __m256d lanes[8];
#pragma GCC unroll 8
    for (size_t l = 0; l < 8; ++l) lanes[l] = _mm256_setzero_pd();
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

double dot_wide(const double* a, const double* b, size_t dim) {
    __m256d lanes[8];
#pragma GCC unroll 8
    for (size_t l = 0; l < 8; ++l) lanes[l] = _mm256_setzero_pd();
    for (size_t k = 0; k < dim; k += 32) {
#pragma GCC unroll 8
        for (size_t l = 0; l < 8; ++l) {
            lanes[l] = _mm256_fmadd_pd(_mm256_loadu_pd(a + k + 4 * l),
                                       _mm256_loadu_pd(b + k + 4 * l), lanes[l]);
        }
    }
    return sum_lanes(lanes);
}

// One pair's lanes are half of the registers: pairs in a tile would share nothing.
void dot_tile(const double* a, const double* b, size_t dim, double* out) {
    for (size_t i = 0; i < dot_tile_rows; ++i) {
        for (size_t j = 0; j < dot_tile_columns; ++j) {
            out[i * dot_tile_columns + j] = dot_wide(a + i * dim, b + j * dim, dim);
        }
    }
}

void widen(const uint16_t* halves, size_t n, float* out) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const auto* eight = reinterpret_cast<const __m128i*>(halves + i);
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(eight)));
    }
    for (; i < n; ++i) {
        out[i] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(halves[i])));
    }
}

uint64_t multiply_add(uint64_t n_rounds, float* value) {
    constexpr size_t n_sums = 12;  // latency 4 or 5, two a cycle
    const __m256 factor = _mm256_set1_ps(*value);
    __m256 sums[n_sums];
#pragma GCC unroll 12
    for (size_t i = 0; i < n_sums; ++i) {
        sums[i] =
            _mm256_set1_ps(static_cast<float>(i));  // all different: equal ones would be merged
    }
    for (uint64_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 12
        for (size_t i = 0; i < n_sums; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, factor);
    }
#pragma GCC unroll 12
    for (size_t i = 0; i < n_sums; ++i) *value += _mm256_cvtss_f32(sums[i]);
    return n_rounds * n_sums * 8;
}

struct WideLimits {
    __m256d reference, min_score, max_score, absolute_margin, highest;
};

// Four entries: bits[i] is which pass limit i alone.
inline __m128 margins4(__m128 scores, const WideLimits& limits, uint32_t* bits) {
    const __m256d score = _mm256_cvtps_pd(scores);
    const __m256d margin = _mm256_sub_pd(limits.reference, score);
    const auto test = [](__m256d passes) {
        return static_cast<uint32_t>(_mm256_movemask_pd(passes));
    };
    bits[0] = test(_mm256_cmp_pd(margin, margin, _CMP_ORD_Q));
    bits[1] = test(_mm256_cmp_pd(score, limits.min_score, _CMP_NLT_UQ));
    bits[2] = test(_mm256_cmp_pd(score, limits.max_score, _CMP_NGT_UQ));
    bits[3] = test(
        _mm256_cmp_pd(_mm256_add_pd(score, limits.absolute_margin), limits.reference, _CMP_NGT_UQ));
    bits[4] = test(_mm256_cmp_pd(score, limits.highest, _CMP_NGT_UQ));
    return _mm256_cvtpd_ps(margin);
}

// Eight entries, of which those in the bits of `there` count.
inline void margins8(const float* scores, uint32_t there, const WideLimits& limits, float* results,
                     uint8_t* kept, uint64_t* left) {
    uint32_t low[n_margin_limits];
    uint32_t high[n_margin_limits];
    _mm_storeu_ps(results, margins4(_mm_loadu_ps(scores), limits, low));
    _mm_storeu_ps(results + 4, margins4(_mm_loadu_ps(scores + 4), limits, high));
#pragma GCC unroll 5
    for (size_t i = 0; i < n_margin_limits; ++i) {
        there &= low[i] | high[i] << 4;
        left[i] += static_cast<uint64_t>(__builtin_popcount(there));
    }
    const __m128i places = _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m128i spread = _mm_and_si128(_mm_set1_epi8(static_cast<char>(there)), places);
    const __m128i ones = _mm_and_si128(_mm_cmpeq_epi8(spread, places), _mm_set1_epi8(1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(kept), ones);
}

void margins(const float* scores, size_t n, const MarginLimits& limits, float* results,
             uint8_t* kept, uint64_t* left) {
    const WideLimits wide = {_mm256_set1_pd(limits.reference), _mm256_set1_pd(limits.min_score),
                             _mm256_set1_pd(limits.max_score),
                             _mm256_set1_pd(limits.absolute_margin),
                             _mm256_set1_pd(limits.highest)};
    size_t j = 0;
    for (; j + 8 <= n; j += 8) margins8(scores + j, 0xFF, wide, results + j, kept + j, left);
    if (j == n) return;
    float last_scores[8] = {};
    float last_results[8];
    uint8_t last_kept[8];
    for (size_t i = 0; j + i < n; ++i) last_scores[i] = scores[j + i];
    margins8(last_scores, (1u << (n - j)) - 1, wide, last_results, last_kept, left);
    for (size_t i = 0; j + i < n; ++i) {
        results[j + i] = last_results[i];
        kept[j + i] = last_kept[i];
    }
}

}  // namespace

const Kernels kernels_avx2 = {n_queries, n_docs,   scan_tile,    dot,    widen,
                              nullptr,   dot_tile, multiply_add, margins};

}  // namespace gplfast::cpu
