// The documents that may still be among a query's k best, kept in a caller's buffer.
//
// Each has bounds on its canonical score. The k-th largest lower bound is a score that k documents
// reach, so what lies below it is out; most candidates leave that way and are never rescored.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/total_order.h"

namespace gplfast::ops {

struct Candidate {
    float lower;
    float upper;
    int64_t id : 63;
    uint64_t is_exact : 1;  // lower == upper == the canonical score
};

class Candidates {
  public:
    // Room for what bounds leave undecided, 2 to 7 times k in embeddings, before anything must be
    // rescored to make room; no more than there are documents.
    static size_t capacity_for(size_t k, size_t n_docs) {
        return std::min(std::max<size_t>(256, 8 * k), n_docs + 1);
    }

    Candidates(Candidate* items, size_t k, size_t capacity)
        : items_(items), k_(k), capacity_(capacity) {}

    // `rescore(id)` gives a canonical score, NaN for none. True when the threshold has risen.
    template <class Rescore>
    bool push(float lower, float upper, int64_t id, Rescore&& rescore) {
        if (upper < threshold_) return false;
        items_[size_++] = {lower, upper, id, 0};
        return size_ == capacity_ && shrink(rescore);
    }

    // A score that at least k documents reach; -inf until then.
    float threshold() const { return threshold_; }

    // Adds another list's candidates, of other documents, and empties it.
    template <class Rescore>
    void merge(Candidates& other, Rescore&& rescore) {
        for (size_t i = 0; i < other.size_; ++i) {
            const Candidate& item = other.items_[i];
            if (item.upper < threshold_) continue;
            items_[size_++] = item;
            if (size_ == capacity_) shrink(rescore);
        }
        other.size_ = 0;
    }

    // Scores all that may still matter, so that no row is asked for later. True when the threshold
    // has risen.
    template <class Rescore>
    bool settle(Rescore&& rescore) {
        const float before = threshold_;
        raise_to_kth_lower();
        rescore_first(size_, rescore);
        raise_to_kth_lower();
        return threshold_ > before;
    }

    // Writes the best min(k, found) hits, best first, and returns how many there are.
    template <class Rescore>
    size_t finish(Hit* hits, Rescore&& rescore) {
        raise_to_kth_lower();
        // From the best upper bound down: what follows the first that cannot matter cannot either.
        std::sort(items_, items_ + size_,
                  [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
        size_t n = 0;
        for (size_t i = 0; i < size_; ++i) {
            if (n == k_ && items_[i].upper < hits[0].score) break;
            make_exact(items_[i], rescore);
            if (!std::isnan(items_[i].lower)) n = insert(hits, n, {items_[i].lower, items_[i].id});
        }
        std::sort(hits, hits + n, better);
        return n;
    }

  private:
    static constexpr float infinity = std::numeric_limits<float>::infinity();

    // `hits` is a heap of at most k, the worst on top.
    size_t insert(Hit* hits, size_t n, const Hit& hit) const {
        if (n == k_) {
            if (!better(hit, hits[0])) return n;
            std::pop_heap(hits, hits + n, better);
            --n;
        }
        hits[n++] = hit;
        std::push_heap(hits, hits + n, better);
        return n;
    }

    template <class Rescore>
    static void make_exact(Candidate& item, Rescore&& rescore) {
        if (item.is_exact) return;
        item.lower = item.upper = rescore(item.id);
        item.is_exact = 1;
    }

    void drop_below_threshold() {
        size_ = std::partition(items_, items_ + size_,
                               [this](const Candidate& c) { return c.upper >= threshold_; }) -
                items_;
    }

    void raise_to_kth_lower() {
        if (size_ < k_) return;
        std::nth_element(items_, items_ + (k_ - 1), items_ + size_,
                         [](const Candidate& a, const Candidate& b) { return a.lower > b.lower; });
        threshold_ = std::max(threshold_, items_[k_ - 1].lower);
        drop_below_threshold();
    }

    template <class Rescore>
    void rescore_first(size_t n, Rescore&& rescore) {
        for (size_t i = 0; i < n; ++i) make_exact(items_[i], rescore);
        size_ = std::remove_if(items_, items_ + size_,
                               [](const Candidate& c) { return std::isnan(c.lower); }) -
                items_;
    }

    // Makes room: bounds first, then the scores of the k best, then all scores.
    template <class Rescore>
    bool shrink(Rescore&& rescore) {
        const float before = threshold_;
        raise_to_kth_lower();
        const size_t enough = std::max(capacity_ / 2, k_);
        if (size_ > enough) {
            std::nth_element(
                items_, items_ + (k_ - 1), items_ + size_,
                [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
            rescore_first(k_, rescore);
            raise_to_kth_lower();
        }
        if (size_ > enough) {
            rescore_first(size_, rescore);
            if (size_ > k_) {
                std::nth_element(items_, items_ + (k_ - 1), items_ + size_,
                                 [](const Candidate& a, const Candidate& b) {
                                     return better({a.lower, a.id}, {b.lower, b.id});
                                 });
                size_ = k_;
                threshold_ = std::max(threshold_, items_[k_ - 1].lower);
            }
        }
        return threshold_ > before;
    }

    Candidate* items_;
    size_t k_;
    size_t capacity_;
    size_t size_ = 0;
    float threshold_ = -infinity;
};

}  // namespace gplfast::ops
