// What all users of the integer kernels do around them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kernels.h"

namespace gplfast::ops {

// What a thread needs around its calls of Int8Kernels::multiply.
class KernelState {
  public:
    explicit KernelState(const cpu::Int8Kernels& int8) : int8_(int8) {
        if (int8_.begin) int8_.begin();
    }
    ~KernelState() {
        if (int8_.end) int8_.end();
    }
    KernelState(const KernelState&) = delete;
    KernelState& operator=(const KernelState&) = delete;

  private:
    const cpu::Int8Kernels& int8_;
};

// Puts the bytes of query i, as a row has them, into its tile of `tiles`: the layout of
// Int8Queries::bytes.
inline void put_query(const uint8_t* row, size_t stride, size_t i, size_t width, int8_t* tiles) {
    int8_t* tile = tiles + i / width * width * stride;
    for (size_t k = 0; k < stride; k += 4) {
        uint32_t four;
        std::memcpy(&four, row + k, sizeof(four));
        four ^= 0x80808080u;  // byte - int8_zero, as two's complement
        std::memcpy(tile + (k / 4 * width + i % width) * 4, &four, sizeof(four));
    }
}

inline size_t n_blocks_of(const cpu::Int8Kernels& int8) {
    return int8.block_docs ? int8.panel_docs / int8.block_docs : 0;
}

// Writes the extremes of the panel's blocks, n_blocks_of() of them.
inline void set_extremes(const cpu::Int8Docs& panel, const cpu::Int8Kernels& int8,
                         cpu::Int8Block* blocks) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (size_t b = 0; b < n_blocks_of(int8); ++b) {
        cpu::Int8Block block{infinity, 0.0f, -infinity, -infinity};
        for (size_t i = b * int8.block_docs; i < (b + 1) * int8.block_docs; ++i) {
            block.min_inverse_scale = std::min(block.min_inverse_scale, panel.inverse_scales[i]);
            block.max_inverse_scale = std::max(block.max_inverse_scale, panel.inverse_scales[i]);
            block.max_residual = std::max(block.max_residual, panel.residuals[i]);
            block.max_norm = std::max(block.max_norm, panel.norms[i]);
        }
        blocks[b] = block;
    }
}

}  // namespace gplfast::ops
