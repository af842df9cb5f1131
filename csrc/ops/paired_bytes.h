// Rows as bytes on both sides of a pair, and what their first bytes prove about its score.
//
// Both rows are centred, so that the bound shrinks with what is left of a narrow collection:
//     x.y = x'.y' + a_x + a_y,   x' = x - mean,   a_x = x.mean - mean.mean / 2.
// As in quantized.h, x^ stands for Rx' with r_x = |Rx' - x^|, and for a whole pair
//     |x'.y' - x^.y^| <= |x^| r_y + r_x |y'|,   |x^| <= |x'| + r_x.
// The scan looks at the first `depth` of the rotated elements only. Split Rx' there into u_x and
// v_x: x'.y' = u_x.u_y + v_x.v_y, where |v_x.v_y| <= |v_x| |v_y| and |u_x.u_y - u^_x.u^_y| is
// bounded as above by what is measured of the first elements alone. A rotation spreads a row's
// length over its elements, so v is short: at depth d of D, |v|^2 is about (1 - d/D) |x'|^2, and
// two unit rows whose cosine is c pass a threshold t only when d/D < (1 - t) / (1 - c), or by
// chance.
//
// The float64 roundings of a_x and of the canonical sum are below 2^-36 e_x e_y, e_x = |x| +
// |mean|. The kernel's limit has room for one product of two numbers beside the a's, so all error
// terms become one by Cauchy-Schwarz, for any w > 0:
//     |v_x| |v_y| + |u_x| r_y + r_x |u_y| + 2^-36 e_x e_y <= E_x E_y,
//     E_x^2 = |v_x|^2 + w |u_x|^2 + r_x^2 / w + 2^-36 e_x^2,
// with equality when both rows have the same proportions and w = r_x / |u_x|. The limit's own
// roundings are 4 of 2^-24 of each term; 2^-21 is allowed for.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "common/aligned.h"
#include "cpu/kernels.h"
#include "ops/dedup.h"
#include "ops/quantized.h"

namespace gplfast::ops {

class PairedBytes {
  public:
    // The rows of problem.docs that `rows` lists; a pair scores when it reaches the threshold.
    PairedBytes(const DedupProblem& problem, const std::vector<int64_t>& rows,
                const cpu::Kernels& kernels, const Quantizer& quantizer,
                const cpu::Int8Kernels& int8, size_t depth, const std::function<void()>& poll);

    size_t depth() const { return depth_; }
    size_t stride() const { return stride_; }
    bool is_nan(size_t i) const { return std::isnan(rows_[i].scale); }
    double norm(size_t i) const { return rows_[i].norm; }  // as canonical_score takes it
    const uint8_t* bytes(size_t i) const { return bytes_.data() + i * stride_; }

    // Rows from `first` on as the documents or the queries of a scan to depth(). The queries' bytes
    // and offsets come from PackedQueries.
    cpu::Int8Docs panel(size_t first, const cpu::Int8Block* blocks) const {
        return {bytes(first),
                stride_,
                inverse_scales_.data() + first,
                offsets_.data() + first,
                reaches_.data() + first,
                blocks};
    }
    cpu::Int8Queries tile(size_t first, const int8_t* bytes, const int32_t* offsets) const {
        return {bytes, offsets, limits_.data() + first, inverse_scales_.data() + first,
                reaches_.data() + first};
    }

    // x^.y^ over the scales, as a scan of all bytes has it.
    int32_t dot(size_t i, size_t j) const;

    // Bounds on the canonical score, given that.
    struct Bounds {
        double lower;
        double upper;
    };
    Bounds bounds(size_t i, size_t j, int32_t dot) const {
        const Row& x = rows_[i];
        const Row& y = rows_[j];
        if (!is_regular(i) || !is_regular(j)) return {-infinity, infinity};
        const double near = dot * (x.scale * y.scale) + x.offset + y.offset;
        const double error =
            x.length * y.residual + x.residual * y.length + 0x1p-36 * x.extent * y.extent;
        // More than the roundings of the canonical score and of these sums.
        const double reach =
            error + (std::abs(near) + std::abs(x.offset) + std::abs(y.offset)) * 0x1p-22 + 0x1p-140;
        return {near - reach, near + reach};
    }

  private:
    static constexpr double infinity = std::numeric_limits<double>::infinity();

    struct Row {
        double scale;     // of the bytes; NaN: scores with nothing
        double norm;      // of the row as stored
        double offset;    // a_x
        double length;    // |x'| + r_x
        double residual;  // r_x
        double extent;    // e_x
    };

    void set(size_t i, const float* row, const Quantizer& quantizer, const cpu::Kernels& kernels,
             float* work);
    void set_limits(size_t i, double reach);
    double reach_of(const Row& row, double rounding, const uint8_t* bytes, float* rotated,
                    const cpu::Kernels& kernels) const;
    bool is_regular(size_t i) const { return inverse_scales_[i] != 0.0f; }

    const size_t stride_;
    const size_t depth_;
    const Metric metric_;
    const float threshold_;
    const double mean_norm_;
    AlignedBuffer<uint8_t> bytes_;
    std::vector<Row> rows_;
    // What the kernel's limit is made of: limits_[x] inverse_scales_[y] - inverse_scales_[x]
    // offsets_[y] - reaches_[x] reaches_[y].
    std::vector<float> limits_, inverse_scales_, offsets_, reaches_;
};

// A block of rows in the order in which the kernel takes queries.
class PackedQueries {
  public:
    void pack(const PairedBytes& rows, size_t begin, size_t end, const cpu::Int8Kernels& int8);
    size_t begin() const { return begin_; }
    size_t count() const { return count_; }
    cpu::Int8Queries tile(const PairedBytes& rows, size_t t) const {
        return rows.tile(begin_ + t * width_, bytes(t), offsets_.data() + t * width_);
    }
    // For a scan of all bytes. Its limits are those of the first ones: only its scores count.
    cpu::Int8Queries whole_tile(const PairedBytes& rows, size_t t) const {
        return rows.tile(begin_ + t * width_, bytes(t), whole_offsets_.data() + t * width_);
    }

  private:
    const int8_t* bytes(size_t t) const { return bytes_.data() + t * width_ * stride_; }

    size_t begin_ = 0;
    size_t count_ = 0;
    size_t width_ = 0;
    size_t stride_ = 0;
    AlignedBuffer<int8_t> bytes_;
    std::vector<int32_t> offsets_, whole_offsets_;
};

}  // namespace gplfast::ops
