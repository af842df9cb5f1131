// A fast 64-bit hash of bytes, for finding damage and copies; not against an adversary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace gplfast {

inline uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0xff51afd7ed558ccdull;
    return hash ^ hash >> 32;
}

// The same on every little-endian machine. Four chains side by side, so that multiplications
// overlap.
inline uint64_t hash_bytes(const void* data, size_t n_bytes) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    uint64_t lanes[4] = {0x9e3779b97f4a7c15ull, 0xbf58476d1ce4e5b9ull, 0x94d049bb133111ebull,
                         n_bytes};
    size_t i = 0;
    for (; i + sizeof(lanes) <= n_bytes; i += sizeof(lanes)) {
        uint64_t words[4];
        std::memcpy(words, bytes + i, sizeof(words));
        for (size_t l = 0; l < 4; ++l) lanes[l] = mix(lanes[l], words[l]);
    }
    for (; i < n_bytes; ++i) lanes[i % 4] = mix(lanes[i % 4], bytes[i]);
    return mix(mix(mix(lanes[0], lanes[1]), lanes[2]), lanes[3]);
}

}  // namespace gplfast
