// Sorted copies of the exclusions of a block of queries, counted from the first document searched.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/search.h"

namespace gplfast::ops {

class Exclusions {
  public:
    Exclusions(const ExcludeView& exclude, size_t first_query, size_t n_queries, size_t first_id) {
        if (!exclude.indptr) return;
        const int64_t* indptr = exclude.indptr + first_query;
        ids_.assign(exclude.ids + indptr[0], exclude.ids + indptr[n_queries]);
        for (int64_t& id : ids_) id -= static_cast<int64_t>(first_id);
        starts_.resize(n_queries + 1);
        for (size_t i = 0; i <= n_queries; ++i) starts_[i] = indptr[i] - indptr[0];
        for (size_t i = 0; i < n_queries; ++i) {
            std::sort(ids_.begin() + starts_[i], ids_.begin() + starts_[i + 1]);
        }
    }

    bool contains(size_t query, int64_t id) const {
        return !starts_.empty() && std::binary_search(ids_.begin() + starts_[query],
                                                      ids_.begin() + starts_[query + 1], id);
    }

  private:
    std::vector<int64_t> ids_;
    std::vector<int64_t> starts_;
};

}  // namespace gplfast::ops
