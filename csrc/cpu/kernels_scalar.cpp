// The kernels without intrinsics: always built, and the twin of the tests' oracle.
#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

constexpr size_t n_queries = 4;
constexpr size_t n_docs = 8;

uint32_t scan_tile(const float* queries, const float* panel, size_t dim, const float* thresholds,
                   const float* slopes, const float* norms, uint32_t* candidates) {
    float scores[n_queries][n_docs] = {};
    for (size_t k = 0; k < dim; ++k) {
        for (size_t i = 0; i < n_queries; ++i) {
            for (size_t j = 0; j < n_docs; ++j) {
                scores[i][j] += queries[k * n_queries + i] * panel[k * n_docs + j];
            }
        }
    }
    uint32_t any = 0;
    for (size_t i = 0; i < n_queries; ++i) {
        uint32_t bits = 0;
        for (size_t j = 0; j < n_docs; ++j) {
            const bool is_below = scores[i][j] < thresholds[i] - slopes[i] * norms[j];
            bits |= static_cast<uint32_t>(!is_below) << j;
        }
        candidates[i] = bits;
        any |= bits;
    }
    return any;
}

double sum_lanes(double* lanes) {
    for (size_t half = 16; half > 0; half /= 2) {
        for (size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
}

double dot(const float* a, const float* b, size_t dim) {
    double lanes[32] = {};
    size_t i = 0;
    for (; i + 32 <= dim; i += 32) {
        for (size_t l = 0; l < 32; ++l) {
            lanes[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
        }
    }
    for (; i < dim; ++i) lanes[i % 32] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum_lanes(lanes);
}

void dot_tile(const double* a, const double* b, size_t dim, double* out) {
    for (size_t i = 0; i < dot_tile_rows; ++i) {
        for (size_t j = 0; j < dot_tile_columns; ++j) {
            double lanes[32] = {};
            for (size_t k = 0; k < dim; k += 32) {
                for (size_t l = 0; l < 32; ++l) lanes[l] += a[i * dim + k + l] * b[j * dim + k + l];
            }
            out[i * dot_tile_columns + j] = sum_lanes(lanes);
        }
    }
}

void widen(const uint16_t* halves, size_t n, float* out) {
    for (size_t i = 0; i < n; ++i) {
        const uint32_t sign = static_cast<uint32_t>(halves[i] & 0x8000u) << 16;
        const uint32_t magnitude = halves[i] & 0x7FFFu;
        uint32_t bits;
        if (magnitude >= 0x7C00u) {  // infinities and NaN
            bits = 0x7F800000u | (magnitude & 0x03FFu) << 13;
        } else if (magnitude >= 0x0400u) {
            bits = (magnitude << 13) + ((127u - 15u) << 23);
        } else {  // subnormal: an integer times 2^-24
            const float value = static_cast<float>(magnitude) * 0x1p-24f;
            __builtin_memcpy(&bits, &value, sizeof(bits));
        }
        bits |= sign;
        __builtin_memcpy(out + i, &bits, sizeof(bits));
    }
}

uint64_t multiply_add(uint64_t n_rounds, float* value) {
    constexpr size_t n_sums = 48;  // 12 SSE registers
    const float factor = *value;
    float sums[n_sums];
    for (size_t i = 0; i < n_sums; ++i) sums[i] = static_cast<float>(i);
    for (uint64_t round = 0; round < n_rounds; ++round) {
        for (size_t i = 0; i < n_sums; ++i) sums[i] = sums[i] * factor + factor;
    }
    for (const float sum : sums) *value += sum;
    return n_rounds * n_sums;
}

void margins(const float* scores, size_t n, const MarginLimits& limits, float* results,
             uint8_t* kept, uint64_t* left) {
    for (size_t j = 0; j < n; ++j) {
        const double score = scores[j];
        const double margin = limits.reference - score;
        results[j] = static_cast<float>(margin);
        bool stays = margin == margin;
        left[0] += stays;
        stays &= !(score < limits.min_score);
        left[1] += stays;
        stays &= !(score > limits.max_score);
        left[2] += stays;
        stays &= !(score + limits.absolute_margin > limits.reference);
        left[3] += stays;
        stays &= !(score > limits.highest);
        left[4] += stays;
        kept[j] = stays;
    }
}

}  // namespace

const Kernels kernels_scalar = {n_queries, n_docs,   scan_tile,    dot,    widen,
                                nullptr,   dot_tile, multiply_add, margins};

}  // namespace gplfast::cpu
