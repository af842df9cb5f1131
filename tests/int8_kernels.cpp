// Checks the tables of integer kernels against a product written out, for test_int8_kernels.py.
// Usage: int8_kernels TABLE CHECK; exits 0 when the check holds.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"

using namespace gplfast::cpu;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

std::mt19937 random_bits(1);

size_t below(size_t n) {
    return random_bits() % n;
}

float uniform() {
    return static_cast<float>(below(1 << 24)) * 0x1p-24f;
}

// A tile, a panel and their scores.
struct Problem {
    Problem(const Int8Kernels& table, size_t row_bytes)
        : kernels(table),
          stride(row_bytes),
          query_bytes(stride * kernels.tile_queries),
          doc_bytes(stride * kernels.panel_docs),
          offsets(kernels.tile_queries),
          thresholds(kernels.tile_queries),
          query_norms(kernels.tile_queries),
          query_residuals(kernels.tile_queries),
          inverse_scales(kernels.panel_docs),
          doc_residuals(kernels.panel_docs),
          doc_norms(kernels.panel_docs),
          blocks(kernels.block_docs ? kernels.panel_docs / kernels.block_docs : 0),
          scores(kernels.panel_docs * kernels.tile_queries, -1),
          candidates(kernels.panel_docs) {}

    Int8Queries queries() const {
        return {query_bytes.data(), offsets.data(), thresholds.data(), query_norms.data(),
                query_residuals.data()};
    }
    Int8Docs docs() const {
        return {doc_bytes.data(),     stride,           inverse_scales.data(),
                doc_residuals.data(), doc_norms.data(), blocks.data()};
    }
    void multiply() { kernels.multiply(queries(), docs(), stride, scores.data()); }

    const Int8Kernels& kernels;
    size_t stride;
    std::vector<int8_t> query_bytes;
    std::vector<uint8_t> doc_bytes;
    std::vector<int32_t> offsets;
    std::vector<float> thresholds, query_norms, query_residuals;
    std::vector<float> inverse_scales, doc_residuals, doc_norms;
    std::vector<Int8Block> blocks;
    std::vector<int32_t> scores;
    std::vector<uint32_t> candidates;
};

bool multiplies(const Int8Kernels& kernels) {
    if (kernels.begin) kernels.begin();
    for (const size_t stride : {64, 128, 192, 384, 1024, 32768}) {
        for (const bool is_extreme : {false, true}) {
            Problem p(kernels, stride);
            for (auto& x : p.query_bytes) {
                x = static_cast<int8_t>(is_extreme ? -127 : static_cast<int>(below(255)) - 127);
            }
            for (auto& x : p.doc_bytes) x = static_cast<uint8_t>(is_extreme ? 255 : below(256));
            for (auto& x : p.offsets) x = static_cast<int32_t>(below(1 << 20)) - (1 << 19);
            p.multiply();
            for (size_t d = 0; d < kernels.panel_docs; ++d) {
                for (size_t q = 0; q < kernels.tile_queries; ++q) {
                    int32_t sum = p.offsets[q];
                    for (size_t k = 0; k < stride; ++k) {
                        const size_t at = (k / 4 * kernels.tile_queries + q) * 4 + k % 4;
                        sum += p.doc_bytes[d * stride + k] * p.query_bytes[at];
                    }
                    if (p.scores[d * kernels.tile_queries + q] != sum) return false;
                }
            }
        }
    }
    if (kernels.end) kernels.end();
    return true;
}

// Mostly ordinary numbers, with those that arithmetic stumbles over. `rarity` of zero: none.
float number(float low, float high, size_t rarity, const std::vector<float>& special) {
    if (rarity && below(rarity) == 0) return special[below(special.size())];
    return low + (high - low) * uniform();
}

void set_blocks(Problem& p) {
    for (size_t b = 0; b < p.blocks.size(); ++b) {
        Int8Block block{infinity, 0.0f, -infinity, -infinity};
        for (size_t d = b * p.kernels.block_docs; d < (b + 1) * p.kernels.block_docs; ++d) {
            block.min_inverse_scale = std::fmin(block.min_inverse_scale, p.inverse_scales[d]);
            block.max_inverse_scale = std::fmax(block.max_inverse_scale, p.inverse_scales[d]);
            block.max_residual = std::fmax(block.max_residual, p.doc_residuals[d]);
            block.max_norm = std::fmax(block.max_norm, p.doc_norms[d]);
        }
        p.blocks[b] = block;
    }
}

// Scores around the limits; every pair's bit is as its definition says.
bool finds_candidates(const Int8Kernels& kernels) {
    size_t n_candidates = 0, n_empty = 0;
    for (int round = 0; round < 20000; ++round) {
        Problem p(kernels, int8_depth);
        const size_t rarity = round % 3 == 0 ? 0 : (round % 3 == 1 ? 100 : 10);
        const float sign = round % 2 ? 1.0f : -1.0f;
        const float spread = round % 5 == 0 ? 1e30f : 1.0f;
        for (size_t q = 0; q < kernels.tile_queries; ++q) {
            p.thresholds[q] =
                number(900 * sign, 1000 * sign, rarity, {infinity, -infinity, nan, 0.0f, -0.0f});
            p.query_norms[q] = number(1, 2, rarity, {0.0f, infinity, nan, 1e30f});
            p.query_residuals[q] = number(0, 0.1f, rarity, {0.0f, infinity, nan});
        }
        for (size_t d = 0; d < kernels.panel_docs; ++d) {
            p.inverse_scales[d] = spread * number(1, 1.1f, rarity, {0.0f, 1e-30f, 1e8f});
            p.doc_residuals[d] = number(-1, 2, rarity, {0.0f, infinity, 1e30f});
            p.doc_norms[d] = number(10, 20, rarity, {0.0f, infinity});
        }
        for (auto& score : p.scores) {  // few of them above most limits
            score = static_cast<int32_t>(sign * number(900, 1000, 0, {})) - 70;
            if (below(300) == 0) score += 150;
            if (round % 7 == 0) score = -2000;
        }
        set_blocks(p);
        const bool found =
            kernels.find_candidates(p.queries(), p.docs(), p.scores.data(), p.candidates.data());
        uint32_t any = 0;
        for (size_t d = 0; d < kernels.panel_docs; ++d) {
            uint32_t expected = 0;
            for (size_t q = 0; q < kernels.tile_queries; ++q) {
                float limit = p.thresholds[q] * p.inverse_scales[d];
                limit = std::fma(-p.query_norms[q], p.doc_residuals[d], limit);
                limit = std::fma(-p.query_residuals[q], p.doc_norms[d], limit);
                const auto score = static_cast<float>(p.scores[d * kernels.tile_queries + q]);
                expected |= static_cast<uint32_t>(!(score < limit)) << q;
            }
            if (found && p.candidates[d] != expected) return false;
            any |= expected;
            n_candidates += expected != 0;
        }
        if (found != (any != 0)) return false;
        n_empty += !found;
    }
    return n_candidates > 10000 && n_empty > 1000;  // both ways were taken
}

// What a scan looks like without begin: on AMX an illegal instruction.
bool works_without_begin(const Int8Kernels& kernels) {
    Problem(kernels, int8_depth).multiply();
    return true;
}

bool works_after_end(const Int8Kernels& kernels) {
    kernels.begin();
    kernels.end();
    return works_without_begin(kernels);
}

}  // namespace

int main(int, char** arguments) {
    const std::string check = arguments[2];
    const std::string name = arguments[1];
    const Int8Kernels& kernels = name == "amx_int8"      ? kernels_amx_int8
                                 : name == "avx512_vnni" ? kernels_avx512_vnni
                                                         : kernels_avx512_vnni_narrow;
    bool holds = false;
    if (check == "multiply") holds = multiplies(kernels);
    if (check == "find_candidates") holds = finds_candidates(kernels);
    if (check == "without_begin") holds = works_without_begin(kernels);
    if (check == "after_end") holds = works_after_end(kernels);
    return holds ? 0 : 1;
}
