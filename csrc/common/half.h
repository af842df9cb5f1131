// float32 to IEEE half precision, rounded to nearest, ties to even, whatever the compiler knows of
// the type.
#pragma once

#include <bit>
#include <cstdint>

namespace gplfast {

inline uint16_t half_bits(float x) {
    constexpr uint32_t infinity = 0x7f800000;
    constexpr uint32_t overflow = 0x477ff000;  // 65520, half way from the largest half to 2^16
    constexpr uint32_t smallest_normal = 0x38800000;  // 2^-14
    const auto bits = std::bit_cast<uint32_t>(x);
    const uint32_t magnitude = bits & 0x7fffffff;
    uint32_t half = 0;
    if (magnitude > infinity) {
        half = 0x7e00;  // NaN
    } else if (magnitude >= overflow) {
        half = 0x7c00;
    } else if (magnitude >= smallest_normal) {
        const uint32_t is_odd = magnitude >> 13 & 1;
        half = (magnitude - (112u << 23) + 0xfff + is_odd) >> 13;  // may carry into the exponent
    } else {
        // The unit of 0.5f's last place is that of subnormal halves: the sum rounds to it.
        const float sum = std::bit_cast<float>(magnitude) + 0.5f;
        half = std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5f);
    }
    return static_cast<uint16_t>(half | (bits >> 16 & 0x8000));
}

}  // namespace gplfast
