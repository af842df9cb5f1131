// The tile instructions in plain C++, for tests on machines without AMX (GPLFAST_EMULATE_AMX).
//
// As on the processor, tiles belong to a thread, their shapes come from the configuration, and what
// does not fit it is an illegal instruction. Included after immintrin.h, whose names it takes over.
#pragma once

#include "cpu/kernels.h"

namespace gplfast::cpu {
namespace {

constexpr size_t n_tiles = 8;
constexpr size_t max_tile_rows = 16;
constexpr size_t max_tile_row_bytes = 64;

struct EmulatedTile {
    size_t rows;  // 0: not configured
    size_t row_bytes;
    uint8_t bytes[max_tile_rows][max_tile_row_bytes];
};

thread_local EmulatedTile emulated_tiles[n_tiles];

inline void require(bool is_legal) {
    if (!is_legal) __builtin_trap();
}

inline EmulatedTile& configured_tile(size_t t) {
    require(emulated_tiles[t].rows != 0);
    return emulated_tiles[t];
}

inline void emulated_release() {
    for (EmulatedTile& tile : emulated_tiles) tile = EmulatedTile{};
}

inline void emulated_loadconfig(const void* config) {
    const auto* bytes = static_cast<const uint8_t*>(config);
    emulated_release();
    require(bytes[0] == 1);  // the palette
    for (size_t i = 1; i < 16; ++i) require(bytes[i] == 0);
    for (size_t t = 0; t < 16; ++t) {
        uint16_t row_bytes;
        __builtin_memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof(row_bytes));
        const uint8_t rows = bytes[48 + t];
        require(rows <= max_tile_rows && row_bytes <= max_tile_row_bytes);
        require((rows == 0) == (row_bytes == 0) && (t < n_tiles || rows == 0));
        if (t < n_tiles) emulated_tiles[t] = {rows, row_bytes, {}};
    }
}

inline void emulated_zero(size_t t) {
    EmulatedTile& tile = configured_tile(t);
    tile = {tile.rows, tile.row_bytes, {}};
}

inline void emulated_load(size_t t, const void* base, size_t stride) {
    emulated_zero(t);
    EmulatedTile& tile = emulated_tiles[t];
    for (size_t r = 0; r < tile.rows; ++r) {
        __builtin_memcpy(tile.bytes[r], static_cast<const uint8_t*>(base) + r * stride,
                         tile.row_bytes);
    }
}

inline void emulated_store(size_t t, void* base, size_t stride) {
    const EmulatedTile& tile = configured_tile(t);
    for (size_t r = 0; r < tile.rows; ++r) {
        __builtin_memcpy(static_cast<uint8_t*>(base) + r * stride, tile.bytes[r], tile.row_bytes);
    }
}

// sums += unsigned bytes times signed bytes, four to a sum, wrapping around.
inline void emulated_dpbusd(size_t sums, size_t first, size_t second) {
    require(sums != first && sums != second && first != second);
    EmulatedTile& c = configured_tile(sums);
    const EmulatedTile& a = configured_tile(first);
    const EmulatedTile& b = configured_tile(second);
    require(a.rows == c.rows && b.row_bytes == c.row_bytes && a.row_bytes == 4 * b.rows);
    for (size_t m = 0; m < c.rows; ++m) {
        uint32_t row[max_tile_row_bytes / 4];
        __builtin_memcpy(row, c.bytes[m], sizeof(row));
        for (size_t k = 0; k < b.rows; ++k) {
            for (size_t n = 0; n < c.row_bytes / 4; ++n) {
                int32_t sum = 0;
                for (size_t i = 0; i < 4; ++i) {
                    sum += a.bytes[m][4 * k + i] * static_cast<int8_t>(b.bytes[k][4 * n + i]);
                }
                row[n] += static_cast<uint32_t>(sum);
            }
        }
        __builtin_memcpy(c.bytes[m], row, sizeof(row));
    }
}

}  // namespace
}  // namespace gplfast::cpu

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#define _tile_loadconfig(config) emulated_loadconfig(config)
#define _tile_release() emulated_release()
#define _tile_zero(tile) emulated_zero(tile)
#define _tile_loadd(tile, base, stride) emulated_load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_store(tile, base, stride)
#define _tile_dpbusd(sums, first, second) emulated_dpbusd(sums, first, second)
