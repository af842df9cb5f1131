// AVX-512 with VNNI: the integer scan for few queries, which is bound by memory. Tiles of one
// query: vectors run along the rows. Only immintrin.h and our plain headers may be included here
// (the ISA rule).
#include <immintrin.h>

#include "cpu/int8_avx512.h"
#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

constexpr size_t n_docs = 16;

inline __m512i add(__m512i a, __m512i b) {
    return _mm512_add_epi32(a, b);
}

// For each 128 bits of four vectors: the sums of their four lanes, side by side.
inline __m512i sums_of_four(const __m512i* v) {
    const __m512i a = add(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i b = add(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return add(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

inline __m512i add_halves(__m512i a, __m512i b) {
    return add(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
}

void multiply(const Int8Queries& queries, const Int8Docs& docs, size_t depth, int32_t* scores) {
    __m512i sums[n_docs];
#pragma GCC unroll 16
    for (size_t i = 0; i < n_docs; ++i) sums[i] = _mm512_setzero_si512();
    for (size_t k = 0; k < depth; k += int8_depth) {
        const __m512i query = _mm512_loadu_si512(queries.bytes + k);
#pragma GCC unroll 16
        for (size_t i = 0; i < n_docs; ++i) {
            const __m512i doc = _mm512_loadu_si512(docs.bytes + i * docs.row_stride + k);
            sums[i] = _mm512_dpbusd_epi32(sums[i], doc, query);
        }
    }
    const __m512i a = add_halves(sums_of_four(sums), sums_of_four(sums + 4));
    const __m512i b = add_halves(sums_of_four(sums + 8), sums_of_four(sums + 12));
    _mm512_storeu_si512(scores, add(add_halves(a, b), _mm512_set1_epi32(queries.offsets[0])));
}

bool find_candidates_of_one(const Int8Queries& queries, const Int8Docs& docs, const int32_t* scores,
                            uint32_t* candidates) {
    __m512 limit =
        _mm512_mul_ps(_mm512_set1_ps(queries.thresholds[0]), _mm512_loadu_ps(docs.inverse_scales));
    limit =
        _mm512_fnmadd_ps(_mm512_set1_ps(queries.norms[0]), _mm512_loadu_ps(docs.residuals), limit);
    limit =
        _mm512_fnmadd_ps(_mm512_set1_ps(queries.residuals[0]), _mm512_loadu_ps(docs.norms), limit);
    const uint32_t found = reached(_mm512_loadu_si512(scores), limit);
    if (found == 0) return false;
    for (size_t i = 0; i < n_docs; ++i) candidates[i] = found >> i & 1;
    return true;
}

}  // namespace

const Int8Kernels kernels_avx512_vnni_narrow = {
    nullptr, 1, n_docs, 0, nullptr, nullptr, multiply, find_candidates_of_one, quantize, nullptr};

}  // namespace gplfast::cpu
