// Rows as bytes, and a proven bound on what that costs.
//
// With x' = x - mean and R orthogonal, q.x = (Rq).(Rx') + q.mean. Let x^ = scale_x (bytes) stand
// for Rx' and q^ for Rq. Then |q.x' - q^.x^| <= |q^| r_x + r_q |x'|, where r_x = |Rx' - x^| and r_q
// are measured while quantising, and |q^| <= |q| + r_q. q^.x^ is an exact integer times two scales.
// Roundings are covered by making r_x larger by 2^-19 |x'| (centring and rotation: at most 9 of
// 2^-24; the kernel's comparison: 5 roundings of numbers no larger than |q| |x'| where they
// matter), by 2^-140 (elements that underflow in the rotation: sqrt(2^15) 2^-150), for cosine by
// 2^-21 (rows scaled to unit length in float32), and by 2^-36 |x| (canonical float64 sums). Rows
// for which this does not hold (not finite, or so large or small that squares leave float32) are
// `irregular`: every pair of theirs is rescored.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/aligned.h"
#include "common/canonical.h"
#include "common/integers.h"
#include "common/row_source.h"
#include "cpu/kernels.h"

namespace gplfast::ops {

// A mean of the documents' rows (for cosine scaled to unit length), of a sample of them: whatever
// the mean, bounds hold, and they are the tighter the nearer it is.
std::vector<float> sampled_mean(const RowSource& docs, Metric metric, const cpu::Kernels& kernels);

// What rows of a search are quantised with: the documents' mean and the rotation's signs.
class Quantizer {
  public:
    Quantizer(std::vector<float> mean, Metric metric, const cpu::Kernels& kernels,
              const cpu::Int8Kernels& int8);

    struct Row {
        float scale;      // of the bytes; NaN: scores with nothing
        double norm;      // |x'| after scaling to unit length for cosine, rounded up
        double residual;  // r_x, rounded up
        double rounding;  // what of r_x is not measured
        bool is_regular;
        int32_t sum;
    };

    Row document(const float* row, float* work, uint8_t* bytes) const;
    Row query(const float* row, float* work, uint8_t* bytes) const;

    // query . mean, of the query scaled to unit length for cosine.
    double dot_mean(const float* query) const;
    double mean_norm() const;

    const std::vector<float>& mean() const { return mean_; }
    size_t dim() const { return mean_.size(); }
    size_t stride() const { return stride_; }
    static size_t stride_for(size_t dim) { return round_up(dim, cpu::int8_depth); }
    Metric metric() const { return metric_; }

  private:
    Row quantize(const float* row, const float* mean, float* work, uint8_t* bytes) const;
    const Metric metric_;
    const cpu::Kernels& kernels_;
    const cpu::Int8Kernels& int8_;
    const size_t stride_;
    std::vector<float> mean_;
    std::vector<float> zeros_;
    std::vector<float> signs_;
};

// A chunk of documents for Int8Kernels, in one stretch of memory: room for `capacity` rows of
// bytes, then for as many scales, inverse scales, residuals, norms, and numbers of the documents in
// the chunk. The rows behind the last document are empty.
//
// Documents lie in pieces, and in a piece in the order of their scales: then the extremes of a
// block are near its documents' own values, and testing whole blocks leaves most of them out.
class QuantizedDocs {
  public:
    // Rows that a chunk of `count` documents has room for: any panel that begins before the last
    // document ends within it.
    static size_t capacity_for(size_t count) {
        return round_up(count, cpu::max_int8_panel_docs) + cpu::max_int8_panel_docs;
    }
    static size_t bytes_for(size_t capacity, size_t stride) {
        return capacity * (stride + n_values * sizeof(float));
    }
    static size_t piece_docs_for(size_t stride) {
        constexpr size_t piece_bytes = 256 * 1024;  // a quarter of a 1 MB L2
        return round_up(ceil_div(piece_bytes, stride), cpu::max_int8_panel_docs);
    }

    QuantizedDocs(uint8_t* memory, size_t capacity, size_t stride)
        : bytes_(memory),
          values_(reinterpret_cast<float*>(memory + capacity * stride)),
          numbers_(reinterpret_cast<uint32_t*>(values_ + (n_values - 1) * capacity)),
          capacity_(capacity),
          stride_(stride) {}

    // Makes the rows from `first` to the capacity empty.
    void clear_from(size_t first);

    // Quantises documents [begin, end) of the chunk, which lie in one piece; document 0 of the
    // chunk is row `first_row` of `rows`.
    void set(size_t begin, size_t end, const RowSource& rows, int64_t first_row,
             const Quantizer& quantizer);

    // What follows goes by a document's place.
    size_t number(size_t i) const { return numbers_[i]; }
    float scale(size_t i) const { return values_[i]; }
    float residual(size_t i) const { return values_[2 * capacity_ + i]; }
    float norm(size_t i) const { return values_[3 * capacity_ + i]; }
    bool is_regular(size_t i) const { return values_[capacity_ + i] != 0.0f; }
    cpu::Int8Docs panel(size_t first, const cpu::Int8Block* blocks) const {
        return {bytes_ + first * stride_,        stride_,
                values_ + capacity_ + first,     values_ + 2 * capacity_ + first,
                values_ + 3 * capacity_ + first, blocks};
    }

    // Copies the first `count` documents, which are whole pieces or all there are.
    void copy_to(QuantizedDocs& other, size_t count) const;

  private:
    static constexpr size_t n_values = 5;  // float and uint32_t have the same size

    uint8_t* bytes_;
    float* values_;  // residuals and norms are over scale
    uint32_t* numbers_;
    size_t capacity_;
    size_t stride_;
};

// Queries for Int8Kernels, in whole tiles.
class QuantizedQueries {
  public:
    QuantizedQueries(const FloatRows& queries, const Quantizer& quantizer,
                     const cpu::Int8Kernels& int8);

    size_t count() const { return count_; }
    size_t n_tiles() const { return ceil_div(count_, width_); }
    cpu::Int8Queries tile(size_t t) const;
    bool is_nan(size_t i) const { return scales_[i] != scales_[i]; }

    // Pairs of query i need a canonical score of at least `score` from now on.
    void raise(size_t i, float score);

    // Bounds on the canonical score of query i and a document, given the kernel's score.
    struct Bounds {
        float lower;
        float upper;
    };
    Bounds bounds(size_t i, int32_t score, const QuantizedDocs& docs, size_t doc) const {
        constexpr float infinity = std::numeric_limits<float>::infinity();
        if (!is_regular_[i] || !docs.is_regular(doc)) return {-infinity, infinity};
        const double unit = static_cast<double>(scales_[i]) * docs.scale(doc);
        const double near = score * unit + dot_means_[i];
        const double error = (static_cast<double>(norms_[i]) * docs.residual(doc) +
                              static_cast<double>(residuals_[i]) * docs.norm(doc)) *
                             unit;
        // More than the roundings of the canonical score and of these two to float32.
        const double reach = error * (1.0 + 0x1p-20) + std::abs(near) * 0x1p-22 + 0x1p-140;
        return {static_cast<float>(near - reach), static_cast<float>(near + reach)};
    }

  private:
    size_t count_;
    size_t width_;
    size_t stride_;
    AlignedBuffer<int8_t> bytes_;
    std::vector<int32_t> offsets_;
    std::vector<float> scales_, thresholds_, norms_, residuals_;  // the last two over scale
    std::vector<double> dot_means_;
    std::vector<char> is_regular_;
};

}  // namespace gplfast::ops
