// AVX-512 with VNNI: the integer scan. Only immintrin.h and our plain headers may be included here
// (the ISA rule).
#include <immintrin.h>

#include "cpu/int8_avx512.h"
#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

// 14 x 2 accumulators, 2 vectors of queries and a broadcast use 31 of the 32 registers.
constexpr size_t n_docs = 14;

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

void multiply(const Int8Queries& queries, const Int8Docs& docs, size_t depth, int32_t* scores) {
    __m512i sums[n_docs][2];
    const __m512i offsets0 = _mm512_loadu_si512(queries.offsets);
    const __m512i offsets1 = _mm512_loadu_si512(queries.offsets + lanes);
#pragma GCC unroll 14
    for (size_t i = 0; i < n_docs; ++i) {
        sums[i][0] = offsets0;
        sums[i][1] = offsets1;
    }
    for (size_t k = 0; k < depth; k += 4) {
        const __m512i queries0 = _mm512_loadu_si512(queries.bytes + k * n_queries);
        const __m512i queries1 = _mm512_loadu_si512(queries.bytes + k * n_queries + 64);
#pragma GCC unroll 14
        for (size_t i = 0; i < n_docs; ++i) {
            const __m512i doc = broadcast4(docs.bytes + i * docs.row_stride + k);
            add_products(sums[i][0], doc, queries0);
            add_products(sums[i][1], doc, queries1);
        }
    }
#pragma GCC unroll 14
    for (size_t i = 0; i < n_docs; ++i) {
        _mm512_storeu_si512(scores + i * n_queries, sums[i][0]);
        _mm512_storeu_si512(scores + i * n_queries + lanes, sums[i][1]);
    }
}

uint64_t multiply_add(uint64_t n_rounds, int32_t* value) {
    constexpr size_t n_sums = 16;  // latency 4 or 5, two a cycle
    const __m512i factor = _mm512_set1_epi32(*value);
    __m512i sums[n_sums];
#pragma GCC unroll 16
    for (size_t i = 0; i < n_sums; ++i) {
        sums[i] = _mm512_set1_epi32(static_cast<int32_t>(i));  // equal ones would be merged
    }
    for (uint64_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 16
        for (size_t i = 0; i < n_sums; ++i) add_products(sums[i], factor, factor);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < n_sums; ++i) *value ^= _mm512_cvtsi512_si32(sums[i]);
    return n_rounds * n_sums * 64;
}

}  // namespace

const Int8Kernels kernels_avx512_vnni = {
    &kernels_avx512_vnni_narrow,     n_queries, n_docs,      n_docs, nullptr, nullptr, multiply,
    find_candidates<n_docs, n_docs>, quantize,  multiply_add};

}  // namespace gplfast::cpu
