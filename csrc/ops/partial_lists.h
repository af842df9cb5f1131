// The best hits of each query in each of several ranges of documents, and their merger. The order
// of hits is total, so the answer does not depend on the ranges.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <vector>

#include "common/float_environment.h"
#include "common/total_order.h"
#include "ops/search.h"

namespace gplfast::ops {

class PartialLists {
  public:
    // At most `range_k` hits a query and range.
    PartialLists(size_t n_queries, size_t n_ranges, size_t range_k)
        : n_ranges_(n_ranges),
          range_k_(range_k),
          hits_(n_queries * n_ranges * range_k),
          n_hits_(n_queries * n_ranges) {}

    void put(size_t query, size_t range, const Hit* hits, size_t n) {
        const size_t slot = query * n_ranges_ + range;
        n_hits_[slot] = n;
        std::copy_n(hits, n, hits_.begin() + slot * range_k_);
    }

    // Writes the (n_queries, k) answer.
    void write(size_t k, const std::function<void()>& poll, float* scores, int64_t* ids) const {
        const FloatEnvironment environment;  // this is the caller's thread: subnormal scores differ
        std::vector<Hit> merged;
        for (size_t query = 0; query < n_hits_.size() / n_ranges_; ++query) {
            poll();
            merged.clear();
            for (size_t slot = query * n_ranges_; slot < (query + 1) * n_ranges_; ++slot) {
                const auto list = hits_.begin() + slot * range_k_;
                merged.insert(merged.end(), list, list + n_hits_[slot]);
            }
            std::sort(merged.begin(), merged.end(), better);
            write_hits(merged.data(), std::min(k, merged.size()), k, scores + query * k,
                       ids + query * k);
        }
    }

  private:
    size_t n_ranges_;
    size_t range_k_;
    std::vector<Hit> hits_;
    std::vector<size_t> n_hits_;
};

}  // namespace gplfast::ops
