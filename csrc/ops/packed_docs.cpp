#include "ops/packed_docs.h"

#include <algorithm>
#include <string>

#include "common/errors.h"
#include "common/hash.h"
#include "common/integers.h"
#include "common/pages.h"

namespace gplfast::ops {

void quantize_rows(const RowSource& rows, int64_t first_row, size_t begin, size_t end,
                   const Quantizer& quantizer, QuantizedDocs docs, size_t n_threads,
                   const std::function<void()>& poll, StopFlag& stop) {
    const size_t piece_docs = QuantizedDocs::piece_docs_for(quantizer.stride());
    const size_t first_piece = begin / piece_docs;
    const auto run_piece = [&](size_t i) {
        const size_t piece = first_piece + i;
        const size_t from = std::max(begin, piece * piece_docs);
        const size_t to = std::min(end, (piece + 1) * piece_docs);
        docs.set(from, to, rows, first_row, quantizer);
        const auto row = static_cast<size_t>(first_row + static_cast<int64_t>(from));
        rows.release(row, row + (to - from));
    };
    parallel_for(ceil_div(end, piece_docs) - first_piece, n_threads, run_piece, poll, stop);
}

size_t PackedDocs::chunk_docs_for(size_t stride) {
    constexpr size_t chunk_bytes = size_t{32} << 20;
    return std::max(round_up(chunk_bytes / stride, cpu::max_int8_panel_docs),
                    cpu::max_int8_panel_docs);
}

void PackedDocs::append(const RowSource& rows, const cpu::KernelSet& set, size_t n_threads,
                        const std::function<void()>& poll) {
    const Quantizer quantizer(mean_, metric_, *set.floats, *set.int8);
    const size_t n_before = chunks_.size();
    StopFlag stop;
    size_t done = 0;
    size_t taken = n_docs_ % chunk_docs_;  // of the last chunk
    try {
        while (done < rows.n_rows()) {
            if (taken == 0) {
                auto chunk = std::make_unique<Chunk>();
                chunk->capacity = QuantizedDocs::capacity_for(chunk_docs_);
                chunk->memory = chunk->owned.resize(bytes_of(*chunk));
                docs_of(*chunk).clear_from(chunk_docs_);
                chunks_.push_back(std::move(chunk));
            }
            const size_t count = std::min(rows.n_rows() - done, chunk_docs_ - taken);
            const auto first_row = static_cast<int64_t>(done) - static_cast<int64_t>(taken);
            quantize_rows(rows, first_row, taken, taken + count, quantizer,
                          docs_of(*chunks_.back()), n_threads, poll, stop);
            done += count;
            taken = (taken + count) % chunk_docs_;
        }
    } catch (...) {
        chunks_.resize(n_before);
        throw;
    }
    n_docs_ += rows.n_rows();
    for (size_t i = 0; i < chunks_.size(); ++i) {
        chunks_[i]->count = std::min(chunk_docs_, n_docs_ - i * chunk_docs_);
    }
}

size_t PackedDocs::chunk_bytes(size_t i) const {
    return QuantizedDocs::bytes_for(QuantizedDocs::capacity_for(chunks_[i]->count), stride_);
}

void PackedDocs::write_chunk(size_t i, uint8_t* out) const {
    const Chunk& chunk = *chunks_[i];
    const size_t capacity = QuantizedDocs::capacity_for(chunk.count);
    QuantizedDocs copy(out, capacity, stride_);
    copy.clear_from(0);
    docs_of(chunk).copy_to(copy, chunk.count);
}

uint64_t PackedDocs::hash_of(const uint8_t* chunk, size_t n_bytes) {
    return hash_bytes(chunk, n_bytes);
}

void PackedDocs::attach(const uint8_t* memory, size_t n_docs, uint64_t hash) {
    auto chunk = std::make_unique<Chunk>();
    chunk->memory = const_cast<uint8_t*>(memory);  // never written: append() makes its own chunks
    chunk->capacity = QuantizedDocs::capacity_for(n_docs);
    chunk->count = n_docs;
    chunk->hash = hash;
    chunk->is_mapped = true;
    chunks_.push_back(std::move(chunk));
    n_docs_ += n_docs;
}

PackedDocs::Stretch PackedDocs::stretch(size_t first, size_t max_count) const {
    const size_t i = first / chunk_docs_;
    const Chunk& chunk = *chunks_[i];
    const size_t begin = first % chunk_docs_;
    const size_t end = std::min(chunk.count, begin + max_count);
    const size_t piece_docs = QuantizedDocs::piece_docs_for(stride_);
    return {docs_of(chunk), begin / piece_docs * piece_docs,
            std::min(chunk.count, round_up(end, piece_docs)), i * chunk_docs_, end - begin};
}

void PackedDocs::will_need(size_t first) const {
    const Chunk& chunk = *chunks_[first / chunk_docs_];
    if (chunk.is_mapped) want_pages(chunk.memory, bytes_of(chunk));
}

void PackedDocs::check(size_t first) const {
    const size_t i = first / chunk_docs_;
    const Chunk& chunk = *chunks_[i];
    if (!chunk.is_mapped || chunk.is_checked) return;
    if (hash_of(chunk.memory, bytes_of(chunk)) != chunk.hash) {
        throw ArtifactError("Index: the packed documents " + std::to_string(i * chunk_docs_) +
                            " and following are damaged on disk; save the index again");
    }
    chunk.is_checked = true;
}

void PackedDocs::release(size_t first) const {
    const Chunk& chunk = *chunks_[first / chunk_docs_];
    const bool is_large = n_docs_ * stride_ > max_resident_bytes;
    if (chunk.is_mapped && is_large) drop_pages(chunk.memory, bytes_of(chunk));
}

}  // namespace gplfast::ops
