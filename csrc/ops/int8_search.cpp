#include "ops/int8_search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "ops/candidates.h"
#include "ops/exclusions.h"
#include "ops/int8_panels.h"
#include "ops/packed_docs.h"
#include "ops/quantized.h"
#include "ops/row_norm.h"

namespace gplfast::ops {
namespace {

// Blocks of queries times ranges of a stretch's panels are the tasks. There is more than one range
// only when there are too few queries to occupy the threads.
struct Plan {
    size_t block_queries;
    size_t n_query_blocks;
    size_t n_ranges;
    size_t stretch_docs;
};

// Ranges too short are not worth a thread, and each has room for candidates of its own.
size_t max_ranges(size_t n_docs) {
    constexpr size_t min_range_docs = 4096;
    return std::max<size_t>(1, n_docs / min_range_docs);
}

Plan plan_for(const SearchProblem& problem, const cpu::Int8Kernels& int8, size_t stride) {
    constexpr size_t max_block_bytes = 512 * 1024;  // of quantised queries: half of a 1 MB L2
    const size_t n_queries = problem.queries.n_rows();
    Plan plan{};
    size_t wanted = problem.block_queries;
    if (wanted == 0) {
        wanted = std::min(ceil_div(n_queries, problem.n_workers()), max_block_bytes / stride);
    }
    plan.block_queries = round_up(std::max<size_t>(1, wanted), int8.tile_queries);
    plan.n_query_blocks = ceil_div(n_queries, plan.block_queries);
    plan.n_ranges = std::min(ceil_div(problem.n_workers(), plan.n_query_blocks),
                             max_ranges(problem.docs.n_rows()));
    plan.stretch_docs =
        problem.block_docs ? problem.block_docs : PackedDocs::chunk_docs_for(stride);
    return plan;
}

// Rows [begin_row, end_row) of the problem, which lie at places [begin, end) of `docs`, maybe with
// others.
struct Stretch {
    QuantizedDocs docs;
    size_t begin;
    size_t end;
    int64_t first_row;  // of document 0 of `docs`
    int64_t begin_row;
    int64_t end_row;
};

// The documents as bytes, stretch by stretch: an index has them, otherwise they are made here.
class Stretches {
  public:
    Stretches(const SearchProblem& problem, const Quantizer& quantizer, size_t stretch_docs)
        : problem_(problem), quantizer_(quantizer) {
        const size_t n_docs = problem.docs.n_rows();
        for (size_t first = 0; first < n_docs;) {
            firsts_.push_back(first);
            first += count_from(first, stretch_docs);
        }
        firsts_.push_back(n_docs);
        step_ = scattered_step(n_stretches());
    }

    size_t n_stretches() const { return firsts_.size() - 1; }

    // The i-th in scattered order.
    Stretch get(size_t i, const std::function<void()>& poll, StopFlag& stop) {
        const size_t first = firsts_[at(i)];
        const size_t count = firsts_[at(i) + 1] - first;
        if (problem_.packed) {
            const size_t id = problem_.first_id + first;
            if (i == 0) will_need(0);
            if (i + 1 < n_stretches()) will_need(i + 1);
            problem_.packed->check(id);
            const auto found = problem_.packed->stretch(id, count);
            const int64_t first_row = row(found.first_doc) - row(problem_.first_id);
            return {found.docs, found.begin, found.end, first_row, row(first), row(first + count)};
        }
        const size_t stride = quantizer_.stride();
        const size_t capacity = QuantizedDocs::capacity_for(count);
        QuantizedDocs docs(memory_.resize(QuantizedDocs::bytes_for(capacity, stride)), capacity,
                           stride);
        docs.clear_from(count);
        quantize_rows(problem_.docs, row(first), 0, count, quantizer_, docs, problem_.n_threads,
                      poll, stop);
        return {docs, 0, count, row(first), row(first), row(first + count)};
    }

    void release(const Stretch& stretch) const {
        if (problem_.packed) {
            problem_.packed->release(problem_.first_id + static_cast<size_t>(stretch.begin_row));
        }
        problem_.docs.release(static_cast<size_t>(stretch.begin_row),
                              static_cast<size_t>(stretch.end_row));
    }

  private:
    static int64_t row(size_t i) { return static_cast<int64_t>(i); }

    void will_need(size_t i) const {
        problem_.packed->will_need(problem_.first_id + firsts_[at(i)]);
        problem_.docs.will_need(firsts_[at(i)], firsts_[at(i) + 1]);
    }

    size_t at(size_t i) const { return i * step_ % n_stretches(); }

    size_t count_from(size_t first, size_t stretch_docs) const {
        const size_t count = std::min(stretch_docs, problem_.docs.n_rows() - first);
        if (!problem_.packed) return count;
        return problem_.packed->stretch(problem_.first_id + first, count).count;
    }

    const SearchProblem& problem_;
    const Quantizer& quantizer_;
    std::vector<size_t> firsts_;
    size_t step_ = 1;
    AlignedBuffer<uint8_t> memory_;
};

// A block of queries and what it has found in one range of every chunk.
class Block {
  public:
    Block(const SearchProblem& problem, const cpu::Kernels& kernels, const cpu::Int8Kernels& int8,
          const Quantizer& quantizer, size_t first_query, size_t n_queries, size_t k)
        : problem_(problem),
          kernels_(kernels),
          int8_(int8),
          stride_(quantizer.stride()),
          group_panels_(std::max<size_t>(1, group_bytes / (int8.panel_docs * stride_))),
          rows_(problem.queries, first_query, n_queries),
          queries_(rows_, quantizer, int8),
          exclusions_(problem.exclude, first_query, n_queries, problem.first_id),
          work_(problem.docs.dim()),
          items_(std::make_unique_for_overwrite<Candidate[]>(
              n_queries * Candidates::capacity_for(k, problem.docs.n_rows()))) {
        const size_t capacity = Candidates::capacity_for(k, problem.docs.n_rows());
        found_.reserve(n_queries);
        for (size_t i = 0; i < n_queries; ++i) {
            found_.emplace_back(items_.get() + i * capacity, k, capacity);
        }
        norms_.reserve(n_queries);
        for (size_t i = 0; i < n_queries; ++i) norms_.push_back(norm_of(rows_.row(i)));
    }

    size_t n_queries() const { return found_.size(); }

    // Scans the panels [begin, end) of a stretch.
    void scan(const Stretch& stretch, size_t begin, size_t end, const StopFlag& stop) {
        if (begin >= end) return;
        const size_t n = ceil_div(end - begin, group_panels_);
        const size_t step = scattered_step(n);
        for (size_t i = 0, place = 0; i < n && !stop.is_set(); ++i, place = (place + step) % n) {
            const size_t first = begin + place * group_panels_;
            scan_group(stretch, first, std::min(first + group_panels_, end));
        }
    }

    // Scores what may still matter while its rows are in memory.
    void settle(const StopFlag& stop) {
        for (size_t i = 0; i < n_queries() && !stop.is_set(); ++i) {
            if (found_[i].settle([&](int64_t id) { return score(i, id); })) {
                queries_.raise(i, found_[i].threshold());
            }
        }
    }

    void merge(Block& other) {
        for (size_t i = 0; i < n_queries(); ++i) {
            found_[i].merge(other.found_[i], [&](int64_t id) { return score(i, id); });
        }
    }

    void add_counts(BoundCounts& counts) const {
        counts.n_candidates += n_candidates_;
        counts.n_rescored += n_rescored_;
    }

    size_t finish(size_t i, Hit* hits) {
        return found_[i].finish(hits, [&](int64_t id) { return score(i, id); });
    }

  private:
    // Of panels that stay in L1 (48 KB) while a tile of queries comes from L2 once for all. AMX
    // would take 32 B of queries a cycle for single panels, where oneDNN's model has an L2 give 47;
    // on VNNI (Zen 5, dims 384 and 768) 12 KB, 24 KB and single panels were as fast as each other.
    static constexpr size_t group_bytes = 24 * 1024;

    // Every tile against the panels [begin, end). The next products are asked for before these
    // scores are tested, so that the processor does both at once.
    void scan_group(const Stretch& stretch, size_t begin, size_t end) {
        alignas(64) int32_t scores[2][cpu::max_int8_panel_docs * cpu::max_int8_tile_queries];
        uint32_t candidates[cpu::max_int8_panel_docs];
        set_panels(stretch, begin, end);
        const size_t n = queries_.n_tiles() * panels_.size();
        const auto tile = [&](size_t i) { return i / panels_.size(); };
        const auto multiply = [&](size_t i) {
            int8_.multiply(queries_.tile(tile(i)), panels_[i % panels_.size()], stride_,
                           scores[i % 2]);
        };
        multiply(0);
        for (size_t i = 0; i < n; ++i) {
            if (i + 1 < n) multiply(i + 1);
            const int32_t* found = scores[i % 2];
            const size_t p = i % panels_.size();
            if (int8_.find_candidates(queries_.tile(tile(i)), panels_[p], found, candidates)) {
                add_candidates(stretch, stretch.begin + (begin + p) * int8_.panel_docs,
                               tile(i) * int8_.tile_queries, found, candidates);
            }
        }
    }

    // Views of the panels, with the extremes of their blocks.
    void set_panels(const Stretch& stretch, size_t begin, size_t end) {
        const size_t n_blocks = n_blocks_of(int8_);
        blocks_.resize((end - begin) * n_blocks);
        panels_.clear();
        for (size_t p = begin; p < end; ++p) {
            cpu::Int8Block* blocks = blocks_.data() + (p - begin) * n_blocks;
            panels_.push_back(stretch.docs.panel(stretch.begin + p * int8_.panel_docs, blocks));
            set_extremes(panels_.back(), int8_, blocks);
        }
    }

    void add_candidates(const Stretch& stretch, size_t panel, size_t tile, const int32_t* scores,
                        const uint32_t* candidates) {
        const size_t n_docs = std::min(int8_.panel_docs, stretch.end - panel);
        const size_t n_tile = std::min(int8_.tile_queries, n_queries() - tile);
        const uint32_t valid = low_bits(n_tile);
        for (size_t d = 0; d < n_docs; ++d) {
            for (uint32_t bits = candidates[d] & valid; bits != 0; bits &= bits - 1) {
                const size_t q = std::countr_zero(bits);
                add(stretch, panel + d, tile + q, scores[d * int8_.tile_queries + q]);
            }
        }
    }

    void add(const Stretch& stretch, size_t place, size_t i, int32_t sum) {
        if (queries_.is_nan(i) || std::isnan(stretch.docs.scale(place))) return;
        const int64_t id = stretch.first_row + static_cast<int64_t>(stretch.docs.number(place));
        if (id < stretch.begin_row || id >= stretch.end_row) return;
        if (exclusions_.contains(i, id)) return;
        ++n_candidates_;
        const auto [lower, upper] = queries_.bounds(i, sum, stretch.docs, place);
        if (found_[i].push(lower, upper, id, [&](int64_t row) { return score(i, row); })) {
            queries_.raise(i, found_[i].threshold());
        }
    }

    double norm_of(const float* row) const {
        return row_norm(row, problem_.docs.dim(), problem_.metric, kernels_);
    }

    float score(size_t i, int64_t id) {
        ++n_rescored_;
        const float* doc = problem_.docs.row(static_cast<size_t>(id), work_.data());
        const double norm = norm_of(doc);
        const double dot = kernels_.dot(rows_.row(i), doc, problem_.docs.dim());
        return canonical_score(dot, norms_[i], norm, problem_.metric);
    }

    const SearchProblem& problem_;
    const cpu::Kernels& kernels_;
    const cpu::Int8Kernels& int8_;
    const size_t stride_;
    const size_t group_panels_;
    const FloatRows rows_;
    QuantizedQueries queries_;
    const Exclusions exclusions_;
    std::vector<float> work_;
    std::vector<cpu::Int8Docs> panels_;
    std::vector<cpu::Int8Block> blocks_;
    std::unique_ptr<Candidate[]> items_;
    std::vector<Candidates> found_;
    std::vector<double> norms_;
    uint64_t n_candidates_ = 0;
    uint64_t n_rescored_ = 0;
};

void search_group(const SearchProblem& problem, const cpu::Kernels& kernels,
                  const cpu::Int8Kernels& int8, const Quantizer& quantizer,
                  const std::function<void()>& poll, float* scores, int64_t* ids) {
    const size_t n_queries = problem.queries.n_rows();
    const size_t k = std::min(problem.k, problem.docs.n_rows());
    const Plan plan = plan_for(problem, int8, quantizer.stride());
    const size_t n_tasks = plan.n_query_blocks * plan.n_ranges;
    std::vector<std::unique_ptr<Block>> blocks(n_tasks);
    StopFlag stop;
    const auto make_block = [&](size_t task) {
        const size_t first = task / plan.n_ranges * plan.block_queries;
        blocks[task] = std::make_unique<Block>(problem, kernels, int8, quantizer, first,
                                               std::min(plan.block_queries, n_queries - first), k);
    };
    parallel_for(n_tasks, problem.n_threads, make_block, poll, stop);

    Stretches stretches(problem, quantizer, plan.stretch_docs);
    for (size_t i = 0; i < stretches.n_stretches(); ++i) {
        const Stretch stretch = stretches.get(i, poll, stop);
        const size_t n_panels = ceil_div(stretch.end - stretch.begin, int8.panel_docs);
        const auto scan_block = [&](size_t task) {
            const KernelState state(int8);
            const size_t range = task % plan.n_ranges;
            blocks[task]->scan(stretch, n_panels * range / plan.n_ranges,
                               n_panels * (range + 1) / plan.n_ranges, stop);
        };
        parallel_for(n_tasks, problem.n_threads, scan_block, poll, stop);
        if (problem.docs.is_large_file()) {  // later its rows would be read one by one, from disk
            const auto settle_block = [&](size_t task) { blocks[task]->settle(stop); };
            parallel_for(n_tasks, problem.n_threads, settle_block, poll, stop);
        }
        stretches.release(stretch);
    }

    const auto write_block = [&](size_t b) {
        Block& block = *blocks[b * plan.n_ranges];
        for (size_t r = 1; r < plan.n_ranges; ++r) block.merge(*blocks[b * plan.n_ranges + r]);
        std::vector<Hit> hits(k);
        for (size_t i = 0; i < block.n_queries() && !stop.is_set(); ++i) {
            const size_t query = b * plan.block_queries + i;
            const size_t n_hits = block.finish(i, hits.data());
            write_hits(hits.data(), n_hits, problem.k, scores + query * problem.k,
                       ids + query * problem.k);
        }
    };
    parallel_for(plan.n_query_blocks, problem.n_threads, write_block, poll, stop);
    if (problem.counts) {
        for (const auto& block : blocks) block->add_counts(*problem.counts);
    }
}

}  // namespace

void search_int8(const SearchProblem& problem, const cpu::Kernels& kernels,
                 const cpu::Int8Kernels& int8, const Quantizer& quantizer,
                 const std::function<void()>& poll, float* scores, int64_t* ids) {
    constexpr size_t max_state_bytes = size_t{512} << 20;  // more queries are searched in turns
    const size_t n_docs = problem.docs.n_rows();
    const size_t k = std::min(problem.k, n_docs);
    const size_t query_bytes = Candidates::capacity_for(k, n_docs) * sizeof(Candidate);
    size_t group = std::max(max_state_bytes / query_bytes, int8.tile_queries);
    if (group < problem.n_workers() * int8.tile_queries) {  // then threads share blocks of queries
        const size_t n_ranges = std::min(problem.n_workers(), max_ranges(n_docs));
        group = std::max(group / n_ranges, int8.tile_queries);
    }
    if (problem.block_queries) group = 2 * round_up(problem.block_queries, int8.tile_queries);
    const size_t n_queries = problem.queries.n_rows();
    for (size_t first = 0; first < n_queries; first += group) {
        SearchProblem part = problem;
        part.queries = problem.queries.slice(first, std::min(n_queries, first + group));
        if (problem.exclude.indptr) part.exclude.indptr = problem.exclude.indptr + first;
        search_group(part, kernels, int8, quantizer, poll, scores + first * problem.k,
                     ids + first * problem.k);
    }
}

}  // namespace gplfast::ops
