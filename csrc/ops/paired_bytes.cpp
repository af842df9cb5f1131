#include "ops/paired_bytes.h"

#include <algorithm>
#include <cstring>

#include "common/integers.h"
#include "common/parallel.h"
#include "ops/int8_panels.h"
#include "ops/rounding.h"
#include "ops/row_norm.h"
#include "ops/scan.h"

namespace gplfast::ops {
namespace {

constexpr float float_infinity = std::numeric_limits<float>::infinity();

int32_t sum_of(const uint8_t* bytes, size_t n) {
    int32_t sum = 0;
    for (size_t k = 0; k < n; ++k) sum += bytes[k];
    return sum - static_cast<int32_t>(n) * cpu::int8_zero;
}

}  // namespace

PairedBytes::PairedBytes(const DedupProblem& problem, const std::vector<int64_t>& rows,
                         const cpu::Kernels& kernels, const Quantizer& quantizer,
                         const cpu::Int8Kernels& int8, size_t depth,
                         const std::function<void()>& poll)
    : stride_(quantizer.stride()),
      depth_(std::min(round_up(depth, cpu::int8_depth), stride_)),
      metric_(problem.metric),
      threshold_(problem.threshold),
      mean_norm_(quantizer.mean_norm()),
      rows_(rows.size()) {
    // A panel or a tile may begin at the last row; what lies behind is never a candidate.
    const size_t padded = rows.size() + std::max(int8.panel_docs, int8.tile_queries);
    bytes_.resize(padded * stride_);
    std::memset(bytes_.data() + rows.size() * stride_, cpu::int8_zero,
                (padded - rows.size()) * stride_);
    limits_.assign(padded, float_infinity);
    inverse_scales_.assign(padded, 0.0f);
    offsets_.assign(padded, -float_infinity);
    reaches_.assign(padded, 0.0f);
    constexpr size_t piece_rows = 512;
    StopFlag stop;
    const auto run_piece = [&](size_t piece) {
        AlignedBuffer<float> work;
        float* buffer = work.resize(stride_);
        std::vector<float> widened(problem.docs.dim());
        const size_t end = std::min(rows.size(), (piece + 1) * piece_rows);
        for (size_t i = piece * piece_rows; i < end; ++i) {
            const auto row = static_cast<size_t>(rows[i]);
            set(i, problem.docs.row(row, widened.data()), quantizer, kernels, buffer);
        }
    };
    parallel_for(ceil_div(rows.size(), piece_rows), problem.n_threads, run_piece, poll, stop);
}

void PairedBytes::set(size_t i, const float* row, const Quantizer& quantizer,
                      const cpu::Kernels& kernels, float* work) {
    uint8_t* out = bytes_.data() + i * stride_;
    const Quantizer::Row found = quantizer.document(row, work, out);
    Row& own = rows_[i];
    own = {found.scale, row_norm(row, quantizer.dim(), metric_, kernels), 0.0, 0.0, 0.0, 0.0};
    if (is_nan(i)) return;  // as the padding: never a candidate
    limits_[i] = -float_infinity;
    offsets_[i] = float_infinity;
    if (!found.is_regular) return;  // always a candidate
    const bool is_cosine = metric_ == Metric::cosine;
    own.offset = quantizer.dot_mean(row) - 0.5 * mean_norm_ * mean_norm_;
    own.length = found.norm + found.residual;
    own.residual = found.residual;
    own.extent = (is_cosine ? 1.0 : std::sqrt(kernels.dot(row, row, quantizer.dim()))) + mean_norm_;
    set_limits(i, reach_of(own, found.rounding, out, work, kernels));
}

// E_x, from the rotated row, which it overwrites.
double PairedBytes::reach_of(const Row& row, double rounding, const uint8_t* bytes, float* rotated,
                             const cpu::Kernels& kernels) const {
    constexpr double weight = 1.0 / 128.0;  // r_x / |u_x| of rows with elements like a normal's
    const size_t n_rest = stride_ - depth_;
    const auto length_of = [&](const float* part, size_t n) {
        return std::sqrt(kernels.dot(part, part, n)) * (1.0 + 0x1p-20) + rounding;
    };
    const double rest = n_rest > 0 ? length_of(rotated + depth_, n_rest) : 0.0;
    const double first = length_of(rotated, depth_);
    const auto scale = static_cast<float>(row.scale);
    for (size_t k = 0; k < depth_; ++k) {
        rotated[k] -= scale * static_cast<float>(static_cast<int>(bytes[k]) - cpu::int8_zero);
    }
    const double error = length_of(rotated, depth_);
    return std::sqrt(rest * rest + weight * (first + error) * (first + error) +
                     error * error / weight + 0x1p-36 * row.extent * row.extent) *
           bound_scale_for_testing();
}

void PairedBytes::set_limits(size_t i, double reach) {
    const Row& row = rows_[i];
    const double score = threshold_;
    // The canonical score was rounded, and so are the terms of the limit.
    const double slack = (std::abs(score) + std::abs(row.offset)) * 0x1p-21 + 0x1p-140;
    const float limit = rounded_down((score - row.offset - slack) / row.scale);
    const float offset = rounded_up((row.offset + std::abs(row.offset) * 0x1p-21) / row.scale);
    // Beyond, products with another row's might leave float32: the row stays irregular.
    if (!(std::abs(limit) < 1e20f) || !(std::abs(offset) < 1e20f)) return;
    limits_[i] = limit;
    offsets_[i] = offset;
    inverse_scales_[i] = static_cast<float>(1.0 / row.scale);
    reaches_[i] = rounded_up(reach * (1.0 + 0x1p-20) / row.scale);
}

int32_t PairedBytes::dot(size_t i, size_t j) const {
    const uint8_t* a = bytes(i);
    const uint8_t* b = bytes(j);
    int32_t sum = 0;
    for (size_t k = 0; k < stride_; ++k) {
        const auto x = static_cast<int16_t>(a[k] - cpu::int8_zero);
        const auto y = static_cast<int16_t>(b[k] - cpu::int8_zero);
        sum += x * y;
    }
    return sum;
}

void PackedQueries::pack(const PairedBytes& rows, size_t begin, size_t end,
                         const cpu::Int8Kernels& int8) {
    begin_ = begin;
    count_ = end - begin;
    width_ = int8.tile_queries;
    stride_ = rows.stride();
    const size_t padded = round_up(count_, width_);
    bytes_.resize(padded * stride_);
    std::memset(bytes_.data(), 0, padded * stride_);
    offsets_.assign(padded, 0);
    whole_offsets_.assign(padded, 0);
    for (size_t i = 0; i < count_; ++i) {
        const uint8_t* row = rows.bytes(begin + i);
        put_query(row, stride_, i, width_, bytes_.data());
        offsets_[i] = -cpu::int8_zero * sum_of(row, rows.depth());
        whole_offsets_[i] = -cpu::int8_zero * sum_of(row, stride_);
    }
}

}  // namespace gplfast::ops
