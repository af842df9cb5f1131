// What integer scans on AVX-512 share: finding candidates and quantising. Everything is in the
// anonymous namespace, so that each file that includes this has its own copy, compiled for its own
// instruction set (the ISA rule).
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

constexpr size_t n_queries = 32;  // of a tile
constexpr size_t lanes = 16;

// The kernel's limit for 16 queries: a score below it is no candidate. Each operation is monotonic,
// roundings included, so that extremes in place of a document's own values give a limit that is no
// higher than any of the documents', or NaN.
inline __m512 limit_of(__m512 scaled_thresholds, const Int8Queries& queries, size_t first,
                       float residual, float norm) {
    const __m512 limit = _mm512_fnmadd_ps(_mm512_loadu_ps(queries.norms + first),
                                          _mm512_set1_ps(residual), scaled_thresholds);
    return _mm512_fnmadd_ps(_mm512_loadu_ps(queries.residuals + first), _mm512_set1_ps(norm),
                            limit);
}

inline uint32_t reached(__m512i scores, __m512 limit) {
    return _mm512_cmp_ps_mask(_mm512_cvtepi32_ps(scores), limit, _CMP_NLT_UQ);
}

// Which of 16 queries may have a candidate in the block.
template <size_t block_docs>
inline uint32_t may_reach(const Int8Queries& queries, size_t first, const Int8Block& block,
                          const int32_t* scores) {
    __m512i largest = _mm512_loadu_si512(scores + first);
#pragma GCC unroll 16
    for (size_t i = 1; i < block_docs; ++i) {
        largest = _mm512_max_epi32(largest, _mm512_loadu_si512(scores + i * n_queries + first));
    }
    const __m512 thresholds = _mm512_loadu_ps(queries.thresholds + first);
    const __m512 a = _mm512_mul_ps(thresholds, _mm512_set1_ps(block.min_inverse_scale));
    const __m512 b = _mm512_mul_ps(thresholds, _mm512_set1_ps(block.max_inverse_scale));
    // The smaller, whatever the threshold's sign. NaN in b comes with NaN in a, as scales are
    // finite, and the minimum with a NaN is its second argument: NaN stays.
    const __m512 scaled = _mm512_min_ps(b, a);
    return reached(largest, limit_of(scaled, queries, first, block.max_residual, block.max_norm));
}

inline uint32_t reaches(const Int8Queries& queries, size_t first, const Int8Docs& docs, size_t doc,
                        const int32_t* scores) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(queries.thresholds + first),
                                        _mm512_set1_ps(docs.inverse_scales[doc]));
    return reached(_mm512_loadu_si512(scores + doc * n_queries + first),
                   limit_of(scaled, queries, first, docs.residuals[doc], docs.norms[doc]));
}

// Whole blocks against their documents' extremes first: of most blocks that is all.
template <size_t panel_docs, size_t block_docs>
bool find_candidates(const Int8Queries& queries, const Int8Docs& docs, const int32_t* scores,
                     uint32_t* candidates) {
    constexpr size_t n_blocks = panel_docs / block_docs;
    uint32_t possible[n_blocks];
    uint32_t any = 0;
#pragma GCC unroll 2
    for (size_t b = 0; b < n_blocks; ++b) {
        const int32_t* block_scores = scores + b * block_docs * n_queries;
        possible[b] = may_reach<block_docs>(queries, 0, docs.blocks[b], block_scores) |
                      may_reach<block_docs>(queries, lanes, docs.blocks[b], block_scores);
        any |= possible[b];
    }
    if (any == 0) return false;
    any = 0;
    for (size_t b = 0; b < n_blocks; ++b) {
        for (size_t doc = b * block_docs; doc < (b + 1) * block_docs; ++doc) {
            candidates[doc] = possible[b] == 0
                                  ? 0
                                  : reaches(queries, 0, docs, doc, scores) |
                                        reaches(queries, lanes, docs, doc, scores) << lanes;
            any |= candidates[doc];
        }
    }
    return any != 0;
}

// One stage of the Walsh-Hadamard transform between elements `half` apart, half < 16: `swapped`
// holds each lane's partner, and `odd` flips the sign of the lanes whose element is subtracted.
inline __m512 butterfly(__m512 own, __m512 swapped, __mmask16 odd) {
    return _mm512_mask_sub_ps(_mm512_add_ps(swapped, own), odd, swapped, own);
}

inline __m512 transform16(__m512 x) {
    x = butterfly(x, _mm512_permute_ps(x, 0xB1), 0xAAAA);
    x = butterfly(x, _mm512_permute_ps(x, 0x4E), 0xCCCC);
    x = butterfly(x, _mm512_shuffle_f32x4(x, x, 0xB1), 0xF0F0);
    return butterfly(x, _mm512_shuffle_f32x4(x, x, 0x4E), 0xFF00);
}

// In place, without the scale: `size` is a power of 4, at least 16.
void transform(float* block, size_t size) {
    for (size_t i = 0; i < size; i += lanes) {
        _mm512_storeu_ps(block + i, transform16(_mm512_loadu_ps(block + i)));
    }
    for (size_t half = lanes; half < size; half *= 2) {
        for (size_t first = 0; first < size; first += 2 * half) {
            for (size_t i = first; i < first + half; i += lanes) {
                const __m512 a = _mm512_loadu_ps(block + i);
                const __m512 b = _mm512_loadu_ps(block + i + half);
                _mm512_storeu_ps(block + i, _mm512_add_ps(a, b));
                _mm512_storeu_ps(block + i + half, _mm512_sub_ps(a, b));
            }
        }
    }
}

void rotate(float* row, size_t dim) {
    size_t first = 0;
    float scale = 0x1p-4f;
    for (size_t size = 256; size >= 16; size /= 4, scale *= 2.0f) {
        for (; first + size <= dim; first += size) {
            transform(row + first, size);
            for (size_t i = first; i < first + size; i += lanes) {
                _mm512_storeu_ps(row + i,
                                 _mm512_mul_ps(_mm512_loadu_ps(row + i), _mm512_set1_ps(scale)));
            }
        }
    }
    for (; first + 4 <= dim; first += 4) {
        float* x = row + first;
        const float a = x[0] + x[1], b = x[0] - x[1], c = x[2] + x[3], d = x[2] - x[3];
        x[0] = 0.5f * (a + c);
        x[1] = 0.5f * (b + d);
        x[2] = 0.5f * (a - c);
        x[3] = 0.5f * (b - d);
    }
}

Int8Row quantize(const float* row, float factor, const float* mean, const float* signs, size_t dim,
                 size_t stride, float* work, uint8_t* bytes) {
    const __m512 factors = _mm512_set1_ps(factor);
    for (size_t k = 0; k < dim; k += lanes) {
        const __mmask16 there =
            k + lanes <= dim ? 0xFFFF : static_cast<__mmask16>((1u << (dim - k)) - 1);
        const __m512 x = _mm512_maskz_loadu_ps(there, row + k);
        const __m512 centred =
            _mm512_sub_ps(_mm512_mul_ps(x, factors), _mm512_maskz_loadu_ps(there, mean + k));
        _mm512_storeu_ps(work + k, _mm512_mul_ps(centred, _mm512_maskz_loadu_ps(there, signs + k)));
    }
    rotate(work, dim);
    for (size_t k = (dim + lanes - 1) / lanes * lanes; k < stride; k += lanes) {
        _mm512_storeu_ps(work + k, _mm512_setzero_ps());
    }
    __m512 largest = _mm512_setzero_ps();
    __m512 squares = _mm512_setzero_ps();
    for (size_t k = 0; k < stride; k += lanes) {
        const __m512 x = _mm512_loadu_ps(work + k);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    Int8Row result;
    result.largest = _mm512_reduce_max_ps(largest);
    result.square_norm = _mm512_reduce_add_ps(squares);
    result.scale = result.largest > 0.0f ? result.largest / 127.0f : 1.0f;
    const __m512 inverse = _mm512_set1_ps(1.0f / result.scale);
    const __m512 scale = _mm512_set1_ps(result.scale);
    __m512 errors = _mm512_setzero_ps();
    __m512i total = _mm512_setzero_si512();
    for (size_t k = 0; k < stride; k += lanes) {
        const __m512 x = _mm512_loadu_ps(work + k);
        __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
        rounded = _mm512_max_epi32(_mm512_min_epi32(rounded, _mm512_set1_epi32(127)),
                                   _mm512_set1_epi32(-127));
        const __m512 error = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(rounded), scale, x);
        errors = _mm512_fmadd_ps(error, error, errors);
        total = _mm512_add_epi32(total, rounded);
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(bytes + k),
            _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, _mm512_set1_epi32(int8_zero))));
    }
    result.square_residual = _mm512_reduce_add_ps(errors);
    result.sum = _mm512_reduce_add_epi32(total);
    return result;
}

}  // namespace
}  // namespace gplfast::cpu
