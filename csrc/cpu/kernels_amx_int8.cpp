// AMX: the integer scan with tile multiplication. Only immintrin.h and our plain headers may be
// included here (the ISA rule).
#include <immintrin.h>

#include "cpu/int8_avx512.h"
#include "cpu/kernels.h"
#if defined(GPLFAST_EMULATE_AMX)
#include "cpu/amx_emulation.h"
#endif

namespace gplfast::cpu {
namespace {

constexpr size_t n_docs = 32;
constexpr size_t rows = 16;       // of a tile
constexpr size_t row_bytes = 64;  // the depth of one product

// Palette 1: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
static_assert(int8_depth == row_bytes);

constexpr TileConfig tile_config;

void begin() {
    _tile_loadconfig(&tile_config);
}

void end() {
    _tile_release();
}

// Tiles 0 to 3 sum up 2 x 2 blocks of documents and queries, 4 and 5 hold documents as they lie in
// memory, 6 and 7 queries, whose layout is that of a product's second operand. Eight tiles allow no
// larger block, and no other shape has fewer loads a product than one.
void multiply(const Int8Queries& queries, const Int8Docs& docs, size_t depth, int32_t* scores) {
    constexpr size_t query_bytes = 4 * n_queries;  // four elements of each query
    const uint8_t* docs0 = docs.bytes;
    const uint8_t* docs1 = docs.bytes + rows * docs.row_stride;
    const int8_t* queries0 = queries.bytes;
    _tile_loadd(0, queries.offsets, 0);  // no stride: the same numbers in each row
    _tile_loadd(1, queries.offsets + lanes, 0);
    _tile_loadd(2, queries.offsets, 0);
    _tile_loadd(3, queries.offsets + lanes, 0);
    for (const uint8_t* end_docs = docs0 + depth; docs0 != end_docs;) {
        _tile_loadd(4, docs0, docs.row_stride);
        _tile_loadd(6, queries0, query_bytes);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, queries0 + row_bytes, query_bytes);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, docs1, docs.row_stride);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
        docs0 += row_bytes;
        docs1 += row_bytes;
        queries0 += rows * query_bytes;
    }
    constexpr size_t score_bytes = n_queries * sizeof(int32_t);
    _tile_stored(0, scores, score_bytes);
    _tile_stored(1, scores + lanes, score_bytes);
    _tile_stored(2, scores + rows * n_queries, score_bytes);
    _tile_stored(3, scores + rows * n_queries + lanes, score_bytes);
}

uint64_t multiply_add(uint64_t n_rounds, int32_t* value) {
    alignas(64) int8_t ones[rows * row_bytes];
    for (auto& one : ones) one = static_cast<int8_t>(*value);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, row_bytes);
    _tile_loadd(6, ones, row_bytes);
    for (uint64_t round = 0; round < n_rounds; ++round) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 6);
        _tile_dpbusd(2, 4, 6);
        _tile_dpbusd(3, 4, 6);
    }
    alignas(64) int32_t sums[rows * lanes];
    _tile_stored(0, sums, row_bytes);
    *value ^= sums[0];
    return n_rounds * 4 * rows * lanes * row_bytes;
}

}  // namespace

const Int8Kernels kernels_amx_int8 = {
    &kernels_avx512_vnni_narrow,   n_queries, n_docs,      rows, begin, end, multiply,
    find_candidates<n_docs, rows>, quantize,  multiply_add};

}  // namespace gplfast::cpu
