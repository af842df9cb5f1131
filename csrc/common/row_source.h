// Rows of float32 or float16 that somebody else owns, in one or several C-contiguous pieces.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/pages.h"

namespace gplfast {

enum class ElementType { float32, float16 };

inline size_t size_of(ElementType type) {
    return type == ElementType::float32 ? sizeof(float) : sizeof(uint16_t);
}

class RowSource {
  public:
    // float16 to float32, which is exact. (A kernel; this layer knows none.)
    using Widen = void (*)(const uint16_t* halves, size_t n, float* out);

    RowSource() = default;
    RowSource(size_t dim, ElementType type, Widen widen) : dim_(dim), type_(type), widen_(widen) {}

    void add(const void* data, size_t n_rows) {
        if (n_rows == 0) return;
        pieces_.push_back({static_cast<const std::byte*>(data), n_rows_});
        n_rows_ += n_rows;
    }

    // These rows are a read-only map of a file: what was read need not stay in memory.
    void set_mapped() { is_mapped_ = true; }

    size_t n_rows() const { return n_rows_; }
    size_t dim() const { return dim_; }
    ElementType type() const { return type_; }
    bool is_float32() const { return type_ == ElementType::float32; }

    // Row i as it is stored, or widened into `work`, which has room for dim floats.
    const float* row(size_t i, float* work) const {
        const std::byte* data = stored(i);
        if (is_float32()) return reinterpret_cast<const float*>(data);
        widen_(reinterpret_cast<const uint16_t*>(data), dim_, work);
        return work;
    }

    // The bytes of row i.
    const std::byte* stored(size_t i) const {
        const Piece* piece = pieces_.data();
        if (pieces_.size() > 1) {
            piece = &*--std::upper_bound(
                pieces_.begin(), pieces_.end(), i,
                [](size_t row, const Piece& other) { return row < other.first; });
        }
        return piece->data + (i - piece->first) * row_bytes();
    }

    size_t row_bytes() const { return dim_ * size_of(type_); }

    // Rows [begin, end), counted from 0.
    RowSource slice(size_t begin, size_t end) const {
        RowSource part(dim_, type_, widen_);
        part.is_mapped_ = is_mapped_;
        for (size_t p = 0; p < pieces_.size(); ++p) {
            const size_t from = std::max(begin, pieces_[p].first);
            const size_t to = std::min(end, pieces_[p].first + rows_of(p));
            if (from < to) {
                part.add(pieces_[p].data + (from - pieces_[p].first) * row_bytes(), to - from);
            }
        }
        return part;
    }

    // A mapped file too large to keep in memory: rows should be read in order, and once.
    bool is_large_file() const { return is_mapped_ && n_rows_ * row_bytes() > max_resident_bytes; }

    // Starts reading rows of such a file.
    void will_need(size_t begin, size_t end) const {
        if (!is_large_file()) return;
        const RowSource part = slice(begin, end);
        for (size_t p = 0; p < part.pieces_.size(); ++p) {
            want_pages(part.pieces_[p].data, part.rows_of(p) * row_bytes());
        }
    }

    // Gives the memory of rows that were read from a mapped file too large to keep back.
    void release(size_t begin, size_t end) const {
        if (!is_large_file()) return;
        const RowSource part = slice(begin, end);
        for (size_t p = 0; p < part.pieces_.size(); ++p) {
            drop_pages(part.pieces_[p].data, part.rows_of(p) * row_bytes());
        }
    }

  private:
    struct Piece {
        const std::byte* data;
        size_t first;
    };

    size_t rows_of(size_t p) const {
        return (p + 1 < pieces_.size() ? pieces_[p + 1].first : n_rows_) - pieces_[p].first;
    }

    size_t dim_ = 0;
    ElementType type_ = ElementType::float32;
    Widen widen_ = nullptr;
    size_t n_rows_ = 0;
    bool is_mapped_ = false;
    std::vector<Piece> pieces_;
};

// A block of rows as float32: where they are stored, or widened once.
class FloatRows {
  public:
    FloatRows(const RowSource& rows, size_t first, size_t count) : dim_(rows.dim()) {
        if (!rows.is_float32()) widened_.resize(count * dim_);
        rows_.reserve(count);
        for (size_t i = 0; i < count; ++i) {
            rows_.push_back(rows.row(first + i, widened_.data() + i * dim_));
        }
    }

    size_t count() const { return rows_.size(); }
    const float* row(size_t i) const { return rows_[i]; }

  private:
    size_t dim_;
    std::vector<float> widened_;
    std::vector<const float*> rows_;
};

}  // namespace gplfast
