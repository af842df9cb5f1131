// Documents that stay for many searches: their rows, which somebody else owns, and their bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "common/canonical.h"
#include "common/row_source.h"
#include "cpu/isa.h"
#include "ops/packed_docs.h"
#include "ops/search.h"

namespace gplfast::ops {

class Index {
  public:
    // `chunk_docs` of the packed documents; 0: chosen here. Never changes an answer.
    Index(size_t dim, Metric metric, size_t chunk_docs)
        : metric_(metric), chunk_docs_(chunk_docs), rows_(dim, ElementType::float32, nullptr) {
        if (chunk_docs_ == 0) {
            chunk_docs_ = PackedDocs::chunk_docs_for(Quantizer::stride_for(dim));
        }
    }

    // An index whose parts lie in files: nothing is added to it. `packed` may be null.
    Index(RowSource rows, Metric metric, std::unique_ptr<PackedDocs> packed)
        : metric_(metric), rows_(std::move(rows)), packed_(std::move(packed)) {
        rows_.set_mapped();
    }

    // Adds rows, of the type of those that are there. When this throws nothing was added.
    void add(const RowSource& rows, const cpu::KernelSet& set, size_t n_threads,
             const std::function<void()>& poll);

    // The search of documents [begin, end) without queries, k and the rest.
    SearchProblem problem(size_t begin, size_t end) const;

    Metric metric() const { return metric_; }
    const RowSource& rows() const { return rows_; }
    // Null where the rows were added without an integer scan.
    const PackedDocs* packed() const { return is_packed() ? packed_.get() : nullptr; }

  private:
    bool is_packed() const { return packed_ && packed_->n_docs() == rows_.n_rows(); }

    Metric metric_;
    size_t chunk_docs_ = 0;
    RowSource rows_;
    std::unique_ptr<PackedDocs> packed_;
};

}  // namespace gplfast::ops
