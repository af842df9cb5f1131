// The k best hits seen so far, kept in a caller's buffer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include "common/total_order.h"

namespace gplfast {

class TopK {
  public:
    // More room means fewer selections; half of k more than k costs about 3 moves per hit.
    static size_t capacity_for(size_t k) { return k + std::max<size_t>(16, k / 2); }

    TopK(Hit* hits, size_t k) : hits_(hits), k_(k) {}

    // True when the k-th score has risen.
    bool push(const Hit& hit) {
        if (is_full_ && !better(hit, kth_)) return false;
        hits_[size_++] = hit;
        if (is_full_ ? size_ < capacity_for(k_) : size_ < k_) return false;
        return select();
    }

    // Score that a hit must reach to matter; -inf until k hits are there.
    float kth_score() const {
        return is_full_ ? kth_.score : -std::numeric_limits<float>::infinity();
    }

    // Sorts the best min(k, pushed) hits to the front of the buffer and returns how many there are.
    size_t finish() {
        if (size_ > k_) select();
        std::sort(hits_, hits_ + size_, better);
        return size_;
    }

  private:
    bool select() {
        const float before = kth_score();
        std::nth_element(hits_, hits_ + (k_ - 1), hits_ + size_, better);
        size_ = k_;
        kth_ = hits_[k_ - 1];
        is_full_ = true;
        return kth_.score > before;
    }

    Hit* hits_;
    size_t k_;
    size_t size_ = 0;
    bool is_full_ = false;
    Hit kth_{};
};

}  // namespace gplfast
