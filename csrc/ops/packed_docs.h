// Documents as bytes, kept for many searches: what an index has beside its rows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/aligned.h"
#include "common/parallel.h"
#include "common/row_source.h"
#include "cpu/isa.h"
#include "ops/quantized.h"

namespace gplfast::ops {

// Quantises documents [begin, end) of a chunk on all threads; document 0 of the chunk is row
// `first_row` of `rows`.
void quantize_rows(const RowSource& rows, int64_t first_row, size_t begin, size_t end,
                   const Quantizer& quantizer, QuantizedDocs docs, size_t n_threads,
                   const std::function<void()>& poll, StopFlag& stop);

class PackedDocs {
  public:
    // `mean` is what is taken from every row; see sampled_mean.
    PackedDocs(std::vector<float> mean, Metric metric, size_t chunk_docs)
        : mean_(std::move(mean)),
          metric_(metric),
          stride_(Quantizer::stride_for(mean_.size())),
          chunk_docs_(chunk_docs) {}

    // Documents of a chunk: 32 MB, so that a chunk stays in a large L3 while all blocks of queries
    // scan it, and a file of them is read in large pieces.
    static size_t chunk_docs_for(size_t stride);

    const std::vector<float>& mean() const { return mean_; }
    size_t n_docs() const { return n_docs_; }
    size_t chunk_docs() const { return chunk_docs_; }
    size_t n_chunks() const { return chunks_.size(); }

    // Quantises the rows behind those that are there. When this throws nothing was added.
    void append(const RowSource& rows, const cpu::KernelSet& set, size_t n_threads,
                const std::function<void()>& poll);

    // Chunk i as a file has it: in memory the last chunk has more room than it needs.
    size_t chunk_bytes(size_t i) const;
    void write_chunk(size_t i, uint8_t* out) const;
    static uint64_t hash_of(const uint8_t* chunk, size_t n_bytes);

    // Adds a chunk of a mapped file, of chunk_bytes() bytes; only the last may have fewer than
    // chunk_docs() documents. Its hash is checked before its first search.
    void attach(const uint8_t* chunk, size_t n_docs, uint64_t hash);

    // The part of a chunk that has documents first, first + 1, … up to `max_count` of them: the
    // whole pieces in which they lie.
    struct Stretch {
        QuantizedDocs docs;
        size_t begin;  // places [begin, end)
        size_t end;
        size_t first_doc;  // of the chunk
        size_t count;      // of the documents asked for that lie here
    };
    Stretch stretch(size_t first, size_t max_count) const;

    // Around the use of a stretch: its pages are wanted soon; its chunk must have its hash (throws
    // ArtifactError); its pages are not needed any more.
    void will_need(size_t first) const;
    void check(size_t first) const;
    void release(size_t first) const;

  private:
    struct Chunk {
        AlignedBuffer<uint8_t> owned;
        uint8_t* memory = nullptr;
        size_t capacity = 0;
        size_t count = 0;
        uint64_t hash = 0;
        bool is_mapped = false;
        mutable std::atomic<bool> is_checked{false};
    };

    QuantizedDocs docs_of(const Chunk& chunk) const {
        return {chunk.memory, chunk.capacity, stride_};
    }
    size_t bytes_of(const Chunk& chunk) const {
        return QuantizedDocs::bytes_for(chunk.capacity, stride_);
    }

    std::vector<float> mean_;
    Metric metric_;
    size_t stride_;
    size_t chunk_docs_;
    size_t n_docs_ = 0;
    std::vector<std::unique_ptr<Chunk>> chunks_;
};

}  // namespace gplfast::ops
