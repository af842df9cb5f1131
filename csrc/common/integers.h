// Small integer arithmetic.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>

namespace gplfast {

inline size_t ceil_div(size_t a, size_t b) {
    return (a + b - 1) / b;
}

inline size_t round_up(size_t n, size_t to) {
    return ceil_div(n, to) * to;
}

// The lowest n bits; all 32 for more.
inline uint32_t low_bits(size_t n) {
    return n >= 32 ? ~0u : (1u << n) - 1;
}

// A step that visits all of n places once in a scattered order: rows sorted by score would
// otherwise each raise every threshold.
inline size_t scattered_step(size_t n) {
    size_t step = std::max<size_t>(1, static_cast<size_t>(0.618 * static_cast<double>(n)));
    while (std::gcd(step, n) != 1) ++step;
    return step;
}

}  // namespace gplfast
