// AVX-512 with VNNI: the integer scan. Only immintrin.h and our plain headers may be included here
// (the ISA rule).
#include <immintrin.h>

#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

// 14 x 2 accumulators, 2 vectors of queries and a broadcast use 31 of the 32 registers.
constexpr size_t n_docs = 14;
constexpr size_t n_queries = 32;
constexpr size_t lanes = 16;

inline __m512i broadcast4(const uint8_t* bytes) {
    int32_t four;
    __builtin_memcpy(&four, bytes, sizeof(four));
    return _mm512_set1_epi32(four);
}

// sums += unsigned bytes times signed bytes, 4 to a lane. Written out because g++ 12 copies the
// intrinsic's accumulator and then spills half of the tile.
inline void add_products(__m512i& sums, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

uint32_t scan_tile(const Int8Queries& queries, const Int8Docs& docs, size_t stride, int32_t* scores,
                   uint32_t* candidates) {
    __m512i sums[n_docs][2];
    const __m512i offsets0 = _mm512_loadu_si512(queries.offsets);
    const __m512i offsets1 = _mm512_loadu_si512(queries.offsets + lanes);
#pragma GCC unroll 14
    for (size_t i = 0; i < n_docs; ++i) {
        sums[i][0] = offsets0;
        sums[i][1] = offsets1;
    }
    for (size_t k = 0; k < stride; k += 4) {
        const __m512i queries0 = _mm512_loadu_si512(queries.bytes + k * n_queries);
        const __m512i queries1 = _mm512_loadu_si512(queries.bytes + k * n_queries + 64);
#pragma GCC unroll 14
        for (size_t i = 0; i < n_docs; ++i) {
            const __m512i doc = broadcast4(docs.bytes + i * stride + k);
            add_products(sums[i][0], doc, queries0);
            add_products(sums[i][1], doc, queries1);
        }
    }
#pragma GCC unroll 14
    for (size_t i = 0; i < n_docs; ++i) {
        _mm512_storeu_si512(scores + i * n_queries, sums[i][0]);
        _mm512_storeu_si512(scores + i * n_queries + lanes, sums[i][1]);
    }
    uint32_t any = 0;
    for (size_t i = 0; i < n_docs; ++i) {
        const __m512 scale = _mm512_set1_ps(docs.inverse_scales[i]);
        const __m512 residual = _mm512_set1_ps(docs.residuals[i]);
        const __m512 norm = _mm512_set1_ps(docs.norms[i]);
        uint32_t bits = 0;
#pragma GCC unroll 2
        for (size_t h = 0; h < 2; ++h) {
            __m512 limit = _mm512_mul_ps(_mm512_loadu_ps(queries.thresholds + h * lanes), scale);
            limit = _mm512_fnmadd_ps(_mm512_loadu_ps(queries.norms + h * lanes), residual, limit);
            limit = _mm512_fnmadd_ps(_mm512_loadu_ps(queries.residuals + h * lanes), norm, limit);
            const __m512 score =
                _mm512_cvtepi32_ps(_mm512_loadu_si512(scores + i * n_queries + h * lanes));
            const __mmask16 reached = _mm512_cmp_ps_mask(score, limit, _CMP_NLT_UQ);
            bits |= static_cast<uint32_t>(reached) << (h * lanes);
        }
        candidates[i] = bits;
        any |= bits;
    }
    return any;
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

const Int8Kernels kernels_avx512_vnni = {n_queries, n_docs, scan_tile, quantize};

}  // namespace gplfast::cpu
