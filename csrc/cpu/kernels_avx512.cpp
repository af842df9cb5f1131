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

inline __m512 add(__m512 a, __m512 b) {
    return _mm512_add_ps(a, b);
}

// For each 128 bits of four vectors: the sums of their four lanes, side by side.
inline __m512 sums_of_four(const __m512* v) {
    const __m512d a =
        _mm512_castps_pd(add(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1])));
    const __m512d b =
        _mm512_castps_pd(add(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3])));
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
               _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

inline __m512 add_halves(__m512 a, __m512 b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

inline __mmask16 columns_left(size_t n) {
    return n >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << n) - 1);
}

// Four documents against four queries, in 16 accumulators: out[4 d + q].
inline void score_block(const float* const* docs, const float* queries, size_t dim, float* out) {
    __m512 sums[row_docs * row_queries];
#pragma GCC unroll 16
    for (size_t i = 0; i < row_docs * row_queries; ++i) sums[i] = _mm512_setzero_ps();
    for (size_t k = 0; k < dim; k += 16) {
        const __mmask16 there = columns_left(dim - k);
        __m512 columns[row_queries];
#pragma GCC unroll 4
        for (size_t q = 0; q < row_queries; ++q) {
            columns[q] = _mm512_maskz_loadu_ps(there, queries + q * dim + k);
        }
#pragma GCC unroll 4
        for (size_t d = 0; d < row_docs; ++d) {
            const __m512 doc = _mm512_maskz_loadu_ps(there, docs[d] + k);
#pragma GCC unroll 4
            for (size_t q = 0; q < row_queries; ++q) {
                sums[4 * d + q] = _mm512_fmadd_ps(doc, columns[q], sums[4 * d + q]);
            }
        }
    }
    const __m512 a = add_halves(sums_of_four(sums), sums_of_four(sums + 4));
    const __m512 b = add_halves(sums_of_four(sums + 8), sums_of_four(sums + 12));
    _mm512_storeu_ps(out, add_halves(a, b));
}

void score_rows(const float* queries, size_t n_rows, const float* const* docs, size_t dim,
                float* scores, float* squares) {
    // The squares come first: they read the rows one after the other, as prefetchers like it. Four
    // rows side by side took twice as long from memory (Zen 5).
    for (size_t d = 0; d < row_docs; ++d) {
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (size_t k = 0; k < dim; k += 32) {
#pragma GCC unroll 2
            for (size_t h = 0; h < 2; ++h) {
                const size_t at = k + 16 * h;
                const __mmask16 there = at < dim ? columns_left(dim - at) : 0;
                const __m512 doc = _mm512_maskz_loadu_ps(there, docs[d] + at);
                _mm_prefetch(reinterpret_cast<const char*>(docs[d] + at + row_docs * dim),
                             _MM_HINT_T0);
                sums[h] = _mm512_fmadd_ps(doc, doc, sums[h]);
            }
        }
        squares[d] = _mm512_reduce_add_ps(add(sums[0], sums[1]));
    }
    for (size_t q = 0; q < n_rows; q += row_queries) {
        float block[row_docs * row_queries];
        score_block(docs, queries + q * dim, dim, block);
        for (size_t d = 0; d < row_docs; ++d) {
            __builtin_memcpy(scores + d * n_rows + q, block + d * row_queries,
                             row_queries * sizeof(float));
        }
    }
}

uint64_t multiply_add(uint64_t n_rounds, float* value) {
    constexpr size_t n_sums = 16;  // latency 4, two a cycle
    const __m512 factor = _mm512_set1_ps(*value);
    __m512 sums[n_sums];
#pragma GCC unroll 16
    for (size_t i = 0; i < n_sums; ++i) {
        sums[i] =
            _mm512_set1_ps(static_cast<float>(i));  // all different: equal ones would be merged
    }
    for (uint64_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 16
        for (size_t i = 0; i < n_sums; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, factor);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < n_sums; ++i) *value += _mm512_cvtss_f32(sums[i]);
    return n_rounds * n_sums * 16;
}

struct WideLimits {
    __m512d reference, min_score, max_score, absolute_margin, highest;
};

// Eight entries: bits[i] is which pass limit i alone.
inline __m256 margins8(__m256 scores, const WideLimits& limits, uint32_t* bits) {
    const __m512d score = _mm512_cvtps_pd(scores);
    const __m512d margin = _mm512_sub_pd(limits.reference, score);
    const __m512d near = _mm512_add_pd(score, limits.absolute_margin);
    bits[0] = _mm512_cmp_pd_mask(margin, margin, _CMP_ORD_Q);
    bits[1] = _mm512_cmp_pd_mask(score, limits.min_score, _CMP_NLT_UQ);
    bits[2] = _mm512_cmp_pd_mask(score, limits.max_score, _CMP_NGT_UQ);
    bits[3] = _mm512_cmp_pd_mask(near, limits.reference, _CMP_NGT_UQ);
    bits[4] = _mm512_cmp_pd_mask(score, limits.highest, _CMP_NGT_UQ);
    return _mm512_cvtpd_ps(margin);
}

// 16 entries: their margins, and which pass all limits. Those in the bits of `counted` count.
inline uint32_t margins16(__m512 scores, uint32_t counted, const WideLimits& limits,
                          __m512& results, uint64_t* left) {
    const __m512d both = _mm512_castps_pd(scores);
    uint32_t low[n_margin_limits];
    uint32_t high[n_margin_limits];
    const __m256 first = margins8(_mm512_castps512_ps256(scores), limits, low);
    const __m256 second = margins8(_mm256_castpd_ps(_mm512_extractf64x4_pd(both, 1)), limits, high);
    results = _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_castps_pd(first)),
                                                  _mm256_castps_pd(second), 1));
    uint32_t stays = 0xFFFF;
#pragma GCC unroll 5
    for (size_t i = 0; i < n_margin_limits; ++i) {
        stays &= low[i] | high[i] << 8;
        left[i] += static_cast<uint64_t>(__builtin_popcount(stays & counted));
    }
    return stays;
}

inline __m128i to_bytes(uint32_t bits) {
    return _mm512_cvtepi32_epi8(_mm512_maskz_set1_epi32(static_cast<__mmask16>(bits), 1));
}

void margins(const float* scores, size_t n, const MarginLimits& limits, float* results,
             uint8_t* kept, uint64_t* left) {
    const WideLimits wide = {_mm512_set1_pd(limits.reference), _mm512_set1_pd(limits.min_score),
                             _mm512_set1_pd(limits.max_score),
                             _mm512_set1_pd(limits.absolute_margin),
                             _mm512_set1_pd(limits.highest)};
    __m512 margin;
    if (n < 16) {
        const auto there = static_cast<__mmask16>((1u << n) - 1);
        const __m512 some = _mm512_maskz_loadu_ps(there, scores);
        // A masked store of bytes takes longer than all the rest (Zen 5), so they are copied.
        alignas(16) uint8_t bytes[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes),
                        to_bytes(margins16(some, there, wide, margin, left)));
        _mm512_mask_storeu_ps(results, there, margin);
        for (size_t j = 0; j < n; ++j) kept[j] = bytes[j];
        return;
    }
    // The last 16 entries may have been done in part: the same again, and counted once.
    for (size_t done = 0; done < n; done += 16) {
        const size_t j = done + 16 <= n ? done : n - 16;
        const uint32_t counted = 0xFFFFu << (done - j) & 0xFFFFu;
        const uint32_t stays = margins16(_mm512_loadu_ps(scores + j), counted, wide, margin, left);
        _mm512_storeu_ps(results + j, margin);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(kept + j), to_bytes(stays));
    }
}

}  // namespace

const Kernels kernels_avx512 = {n_queries,  n_docs,   scan_tile,    dot,    widen,
                                score_rows, dot_tile, multiply_add, margins};

}  // namespace gplfast::cpu
