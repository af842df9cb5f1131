// Philox 4x64 with 10 rounds (Salmon et al., SC 2011): random numbers that are a function of a key
// and a counter, so that no draw depends on the draws before it. The first word of numpy's
// Philox(key, counter - 1).
#pragma once

#include <cstdint>

namespace gplfast {

inline uint64_t philox(uint64_t key0, uint64_t key1, uint64_t counter) {
    __extension__ using uint128_t = unsigned __int128;
    uint64_t x0 = counter;
    uint64_t x1 = 0, x2 = 0, x3 = 0;
    for (int round = 0; round < 10; ++round) {
        const uint128_t a = static_cast<uint128_t>(0xD2E7470EE14C6C93ull) * x0;
        const uint128_t b = static_cast<uint128_t>(0xCA5A826395121157ull) * x2;
        x0 = static_cast<uint64_t>(b >> 64) ^ x1 ^ key0;
        x1 = static_cast<uint64_t>(b);
        x2 = static_cast<uint64_t>(a >> 64) ^ x3 ^ key1;
        x3 = static_cast<uint64_t>(a);
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return x0;
}

}  // namespace gplfast
