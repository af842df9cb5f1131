#include "ops/quantized.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/integers.h"
#include "ops/int8_panels.h"
#include "ops/rounding.h"
#include "ops/scan.h"

namespace gplfast::ops {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// +-1 from a multiplicative hash of the position: the same on every machine, as a saved index
// needs.
float sign_of(size_t k) {
    return ((k + 1) * 0x9e3779b97f4a7c15ull >> 61 & 1) ? -1.0f : 1.0f;
}

double factor_for(double norm, Metric metric) {
    if (metric == Metric::inner_product) return 1.0;
    return norm > 0.0 ? 1.0 / norm : 0.0;
}

}  // namespace

std::vector<float> sampled_mean(const RowSource& docs, Metric metric, const cpu::Kernels& kernels) {
    constexpr size_t n_sampled = 4096;
    const size_t dim = docs.dim();
    const size_t step = std::max<size_t>(1, docs.n_rows() / n_sampled);
    std::vector<float> work(dim);
    std::vector<double> sum(dim, 0.0);
    size_t n = 0;
    for (size_t i = 0; i < docs.n_rows(); i += step) {
        const float* row = docs.row(i, work.data());
        const double norm = std::sqrt(kernels.dot(row, row, dim));
        const double factor = factor_for(norm, metric);
        if (!(norm < 1e15) || !std::isfinite(factor)) continue;
        for (size_t k = 0; k < dim; ++k) sum[k] += factor * row[k];
        ++n;
    }
    std::vector<float> mean(dim, 0.0f);
    for (size_t k = 0; k < dim && n > 0; ++k) {
        mean[k] = static_cast<float>(sum[k] / static_cast<double>(n));
    }
    return mean;
}

Quantizer::Quantizer(std::vector<float> mean, Metric metric, const cpu::Kernels& kernels,
                     const cpu::Int8Kernels& int8)
    : metric_(metric),
      kernels_(kernels),
      int8_(int8),
      stride_(stride_for(mean.size())),
      mean_(std::move(mean)),
      zeros_(mean_.size(), 0.0f),
      signs_(mean_.size()) {
    for (size_t k = 0; k < signs_.size(); ++k) signs_[k] = sign_of(k);
}

Quantizer::Row Quantizer::document(const float* row, float* work, uint8_t* bytes) const {
    return quantize(row, mean_.data(), work, bytes);
}

Quantizer::Row Quantizer::query(const float* row, float* work, uint8_t* bytes) const {
    return quantize(row, zeros_.data(), work, bytes);
}

Quantizer::Row Quantizer::quantize(const float* row, const float* mean, float* work,
                                   uint8_t* bytes) const {
    const double norm = std::sqrt(kernels_.dot(row, row, dim()));
    if (std::isnan(norm) || (metric_ == Metric::cosine && std::isinf(norm))) {
        std::fill_n(bytes, stride_, static_cast<uint8_t>(cpu::int8_zero));
        return {nan, 0.0, 0.0, 0.0, false, 0};
    }
    const double factor = factor_for(norm, metric_);
    const cpu::Int8Row found = int8_.quantize(row, static_cast<float>(factor), mean, signs_.data(),
                                              dim(), stride_, work, bytes);
    const bool in_range =
        found.largest == 0.0f || (found.largest > 1e-12f && found.square_norm < 1e34f);
    // A factor of float32's subnormal numbers has lost its digits, one above its range all of them.
    const bool is_regular =
        in_range && norm < 1e17 && (factor == 0.0 || (factor > 1e-30 && factor < 1e30));
    if (!is_regular) return {1.0f, 0.0, 0.0, 0.0, false, found.sum};
    const bool is_cosine = metric_ == Metric::cosine;
    // float32 sums of up to 2^15 squares, each rounded: far below one in 2^8.
    const double length = std::sqrt(static_cast<double>(found.square_norm)) * (1.0 + 0x1p-8);
    const double error = std::sqrt(static_cast<double>(found.square_residual)) * (1.0 + 0x1p-8);
    const double rounding =
        0x1p-19 * length + (is_cosine ? 0x1p-21 : 0.0) + 0x1p-36 * norm * factor + 0x1p-140;
    const double residual = (error + rounding) * bound_scale_for_testing();
    return {found.scale, length, residual, rounding, true, found.sum};
}

double Quantizer::dot_mean(const float* query) const {
    const double norm =
        metric_ == Metric::cosine ? std::sqrt(kernels_.dot(query, query, dim())) : 1.0;
    return kernels_.dot(query, mean_.data(), dim()) * factor_for(norm, metric_);
}

double Quantizer::mean_norm() const {
    return std::sqrt(kernels_.dot(mean_.data(), mean_.data(), dim()));
}

void QuantizedDocs::clear_from(size_t first) {
    std::fill(bytes_ + first * stride_, bytes_ + capacity_ * stride_,
              static_cast<uint8_t>(cpu::int8_zero));
    for (size_t part = 0; part < n_values; ++part) {
        std::fill(values_ + part * capacity_ + first, values_ + (part + 1) * capacity_, 0.0f);
    }
}

void QuantizedDocs::set(size_t begin, size_t end, const RowSource& rows, int64_t first_row,
                        const Quantizer& quantizer) {
    const size_t n = end - begin;
    std::vector<float> work(stride_);
    std::vector<float> widened(rows.dim());
    AlignedBuffer<uint8_t> bytes;
    bytes.resize(n * stride_);
    std::vector<Quantizer::Row> values(n);
    std::vector<uint32_t> order(n);
    for (size_t i = 0; i < n; ++i) {
        const auto row = static_cast<size_t>(first_row + static_cast<int64_t>(begin + i));
        values[i] = quantizer.document(rows.row(row, widened.data()), work.data(),
                                       bytes.data() + i * stride_);
        order[i] = static_cast<uint32_t>(i);
    }
    const auto key = [&](uint32_t i) { return values[i].is_regular ? values[i].scale : infinity; };
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        return key(a) < key(b) || (key(a) == key(b) && a < b);
    });
    for (size_t i = 0; i < n; ++i) {
        const Quantizer::Row& row = values[order[i]];
        std::copy_n(bytes.data() + order[i] * stride_, stride_, bytes_ + (begin + i) * stride_);
        float* place = values_ + begin + i;
        place[0] = row.scale;
        place[capacity_] = row.is_regular ? 1.0f / row.scale : 0.0f;
        place[2 * capacity_] = row.is_regular ? rounded_up(row.residual / row.scale) : infinity;
        place[3 * capacity_] = row.is_regular ? rounded_up(row.norm / row.scale) : infinity;
        numbers_[begin + i] = static_cast<uint32_t>(begin) + order[i];
    }
}

void QuantizedDocs::copy_to(QuantizedDocs& other, size_t count) const {
    std::copy_n(bytes_, count * stride_, other.bytes_);
    for (size_t part = 0; part < n_values; ++part) {
        std::copy_n(values_ + part * capacity_, count, other.values_ + part * other.capacity_);
    }
}

QuantizedQueries::QuantizedQueries(const FloatRows& queries, const Quantizer& quantizer,
                                   const cpu::Int8Kernels& int8)
    : count_(queries.count()), width_(int8.tile_queries), stride_(quantizer.stride()) {
    const size_t padded = round_up(count_, width_);
    offsets_.assign(padded, 0);
    scales_.assign(padded, 1.0f);
    thresholds_.assign(padded, infinity);
    norms_.assign(padded, 0.0f);
    residuals_.assign(padded, 0.0f);
    dot_means_.assign(padded, 0.0);
    is_regular_.assign(padded, false);
    bytes_.resize(padded * stride_);
    std::fill_n(bytes_.data(), padded * stride_, int8_t{0});
    std::vector<float> work(stride_);
    std::vector<uint8_t> row_bytes(stride_);
    for (size_t i = 0; i < count_; ++i) {
        const float* query = queries.row(i);
        const Quantizer::Row row = quantizer.query(query, work.data(), row_bytes.data());
        scales_[i] = row.scale;
        if (is_nan(i)) continue;
        thresholds_[i] = -infinity;
        is_regular_[i] = row.is_regular;
        if (!row.is_regular) continue;
        norms_[i] = rounded_up((row.norm + row.residual) / row.scale);
        residuals_[i] = rounded_up(row.residual / row.scale);
        offsets_[i] = -cpu::int8_zero * row.sum;
        dot_means_[i] = quantizer.dot_mean(query);
        put_query(row_bytes.data(), stride_, i, width_, bytes_.data());
    }
}

cpu::Int8Queries QuantizedQueries::tile(size_t t) const {
    const size_t first = t * width_;
    return {bytes_.data() + first * stride_, offsets_.data() + first, thresholds_.data() + first,
            norms_.data() + first, residuals_.data() + first};
}

void QuantizedQueries::raise(size_t i, float score) {
    if (!is_regular_[i] || std::isinf(score)) return;
    // The canonical score was rounded, and so is the comparison with it.
    const double slack = std::abs(static_cast<double>(score)) * 0x1p-22 + 0x1p-140;
    thresholds_[i] = rounded_down((score - slack - dot_means_[i]) / scales_[i]);
}

}  // namespace gplfast::ops
