#include "ops/scan.h"

#include <algorithm>
#include <atomic>

#include "ops/rounding.h"

namespace gplfast::ops {
namespace {

std::atomic<double> bound_scale{1.0};

// Copies up to `width` rows into one [dim][width] block. In steps of 16 columns, so that the lines
// being written stay in L1.
void transpose(const float* const* rows, size_t n_rows, size_t dim, const double* scales,
               size_t width, float* block) {
    constexpr size_t step = 16;
    for (size_t k0 = 0; k0 < dim; k0 += step) {
        const size_t k1 = std::min(dim, k0 + step);
        for (size_t i = 0; i < n_rows; ++i) {
            const float* row = rows[i];
            if (scales) {
                for (size_t k = k0; k < k1; ++k) {
                    block[k * width + i] = static_cast<float>(row[k] * scales[i]);
                }
            } else {
                for (size_t k = k0; k < k1; ++k) block[k * width + i] = row[k];
            }
        }
        for (size_t i = n_rows; i < width; ++i) {
            for (size_t k = k0; k < k1; ++k) block[k * width + i] = 0.0f;
        }
    }
}

}  // namespace

void PackedRows::pack(const Rows& rows, size_t block_width, Metric metric,
                      const cpu::Kernels& kernels) {
    count = rows.count;
    dim = rows.source.dim();
    width = block_width;
    blocks.resize(n_blocks() * width * dim);
    norms.resize(count);
    scan_norms.assign(n_blocks() * width, 0.0f);
    max_scan_norm = 0.0;
    if (!rows.source.is_float32()) widened.resize(width * dim);
    double scales[cpu::max_panel_docs];
    const float* block_rows[cpu::max_panel_docs];
    for (size_t b = 0; b < n_blocks(); ++b) {
        const size_t first = b * width;
        const size_t n_rows = std::min(width, count - first);
        for (size_t i = 0; i < n_rows; ++i) {
            const float* row = rows.row(first + i, widened.data() + i * dim);
            block_rows[i] = row;
            double norm = std::sqrt(kernels.dot(row, row, dim));
            double scan_norm = norm;
            if (metric == Metric::cosine) {
                if (std::isinf(norm)) norm = std::numeric_limits<double>::quiet_NaN();
                scales[i] = norm > 0.0 ? 1.0 / norm : 0.0;
                scan_norm = norm > 0.0 ? 1.0 : norm;
            }
            norms[first + i] = norm;
            scan_norms[first + i] = rounded_up(scan_norm);
            max_scan_norm = std::max(max_scan_norm, static_cast<double>(scan_norms[first + i]));
        }
        transpose(block_rows, n_rows, dim, metric == Metric::cosine ? scales : nullptr, width,
                  blocks.data() + b * dim * width);
    }
}

ScanBound::ScanBound(size_t dim) {
    const double terms = static_cast<double>(dim + 16);
    const double scaled = terms * 0x1p-24;
    const double scale = bound_scale.load();
    gamma_ =
        scaled < 0.5 ? scale * scaled / (1.0 - scaled) : std::numeric_limits<double>::infinity();
    absolute_ = scale * terms * 0x1p-148;
}

float ScanBound::slope(float query_norm) const {
    if (query_norm == 0.0f) return 0.0f;
    return rounded_up(gamma_ * query_norm);
}

float ScanBound::threshold(float score) const {
    if (std::isinf(score)) return score;
    // The score was rounded, and scan_tile rounds its comparison: two units in the last place.
    const double slack = std::abs(static_cast<double>(score)) * 0x1p-22;
    return rounded_down(score - slack - absolute_);
}

void set_bound_scale_for_testing(double scale) {
    bound_scale.store(scale);
}

double bound_scale_for_testing() {
    return bound_scale.load();
}

std::vector<float> slopes_of(const PackedRows& queries, const ScanBound& bound) {
    std::vector<float> slopes(queries.scan_norms.size());
    std::transform(queries.scan_norms.begin(), queries.scan_norms.end(), slopes.begin(),
                   [&](float norm) { return bound.slope(norm); });
    return slopes;
}

size_t block_docs_for(size_t dim, const cpu::Kernels& kernels) {
    constexpr size_t block_bytes = 256 * 1024;  // half of the smallest L2 we mean to run well on
    const size_t n_panels = block_bytes / (dim * sizeof(float) * kernels.panel_docs);
    return std::max<size_t>(1, n_panels) * kernels.panel_docs;
}

}  // namespace gplfast::ops
