#include "ops/gram.h"

#include <algorithm>
#include <vector>

#include "common/aligned.h"
#include "common/half.h"
#include "common/integers.h"
#include "common/parallel.h"
#include "ops/row_norm.h"

namespace gplfast::ops {
namespace {

using cpu::dot_tile_columns;
using cpu::dot_tile_rows;

constexpr size_t row_step = dot_tile_rows * dot_tile_columns;  // whole tiles either way

// Some rows of a list, widened to float64 and next to each other.
class Block {
  public:
    void gather(const GramProblem& problem, const cpu::Kernels& kernels, const int64_t* ids,
                size_t first_row, size_t n) {
        const size_t dim = problem.docs.dim();
        widened_.resize(dim);
        first = first_row;
        count = n;
        padded_dim_ = round_up(dim, cpu::dot_tile_depth);
        double* row = rows_.resize(round_up(n, row_step) * padded_dim_);
        norms.resize(n);
        for (size_t i = 0; i < n; ++i, row += padded_dim_) {
            const float* source =
                problem.docs.row(static_cast<size_t>(ids[first + i]), widened_.data());
            std::copy_n(source, dim, row);
            std::fill(row + dim, row + padded_dim_, 0.0);
            norms[i] = row_norm(source, dim, problem.metric, kernels);
        }
        std::fill(row, rows_.data() + round_up(n, row_step) * padded_dim_, 0.0);
    }

    const double* row(size_t i) const { return rows_.data() + i * padded_dim_; }
    size_t padded_dim() const { return padded_dim_; }

    size_t first = 0;  // in the list
    size_t count = 0;
    std::vector<double> norms;

  private:
    size_t padded_dim_ = 0;
    AlignedBuffer<double> rows_;
    std::vector<float> widened_;
};

// The values of one list of m rows.
class Values {
  public:
    Values(const GramProblem& problem, size_t m, int64_t begin, float* floats, uint16_t* halves)
        : is_triangle_(problem.is_triangle),
          m_(m),
          floats_(floats ? floats + begin : nullptr),
          halves_(halves ? halves + begin : nullptr) {}

    // i <= j.
    void set(size_t i, size_t j, float score) const {
        if (is_triangle_) {
            if (i < j) put(i * m_ - i * (i + 1) / 2 + (j - i - 1), score);
        } else {
            put(i * m_ + j, score);
            put(j * m_ + i, score);
        }
    }

  private:
    void put(size_t place, float score) const {
        if (floats_) {
            floats_[place] = score;
        } else {
            halves_[place] = half_bits(score);
        }
    }

    const bool is_triangle_;
    const size_t m_;
    float* floats_;
    uint16_t* halves_;
};

// All pairs of a row of `a` and a row of `b`, or of `a` alone.
void score_blocks(const Block& a, const Block& b, Metric metric, const cpu::Kernels& kernels,
                  const Values& values) {
    const bool is_same = &a == &b;
    double dots[dot_tile_rows * dot_tile_columns];
    // Columns run through row_step rows at a time, so that they come from L2 once for these: 59
    // us for 101 rows of dim 384, 70 us with a tile's rows, 105 us with Kernels::dot.
    for (size_t first = 0; first < a.count; first += row_step) {
        for (size_t j = is_same ? first : 0; j < b.count; j += dot_tile_columns) {
            for (size_t i = first; i < std::min(a.count, first + row_step); i += dot_tile_rows) {
                kernels.dot_tile(a.row(i), b.row(j), a.padded_dim(), dots);
                for (size_t t = 0; t < row_step; ++t) {
                    const size_t r = i + t / dot_tile_columns;
                    const size_t c = j + t % dot_tile_columns;
                    if (r >= a.count || c >= b.count || (is_same && r > c)) continue;
                    values.set(a.first + r, b.first + c,
                               canonical_score(dots[t], a.norms[r], b.norms[c], metric));
                }
            }
        }
    }
}

// The rows of one block of a list against those from there on.
struct Task {
    size_t list;
    size_t first_row;
};

}  // namespace

void gram_indptr(const GramProblem& problem, int64_t* value_indptr) {
    value_indptr[0] = 0;
    for (size_t i = 0; i < problem.n_lists; ++i) {
        const int64_t m = problem.indptr[i + 1] - problem.indptr[i];
        value_indptr[i + 1] = value_indptr[i] + (problem.is_triangle ? m * (m - 1) / 2 : m * m);
    }
}

void gram(const GramProblem& problem, const cpu::Kernels& kernels, const int64_t* value_indptr,
          const std::function<void()>& poll, float* floats, uint16_t* halves) {
    constexpr size_t block_bytes = 384 * 1024;  // two stay in a 1 MB L2
    const size_t row_bytes = round_up(problem.docs.dim(), cpu::dot_tile_depth) * sizeof(double);
    const size_t block_rows =
        problem.block_rows ? problem.block_rows
                           : std::max<size_t>(1, block_bytes / row_bytes / row_step) * row_step;
    std::vector<Task> tasks;
    for (size_t list = 0; list < problem.n_lists; ++list) {
        const auto m = static_cast<size_t>(problem.indptr[list + 1] - problem.indptr[list]);
        for (size_t row = 0; row < m; row += block_rows) tasks.push_back({list, row});
    }
    StopFlag stop;
    const auto run = [&](size_t t) {
        thread_local Block a, b;
        const auto [list, first] = tasks[t];
        const int64_t* ids = problem.ids + problem.indptr[list];
        const auto m = static_cast<size_t>(problem.indptr[list + 1] - problem.indptr[list]);
        const Values values(problem, m, value_indptr[list], floats, halves);
        a.gather(problem, kernels, ids, first, std::min(block_rows, m - first));
        score_blocks(a, a, problem.metric, kernels, values);
        for (size_t row = first + block_rows; row < m && !stop.is_set(); row += block_rows) {
            b.gather(problem, kernels, ids, row, std::min(block_rows, m - row));
            score_blocks(a, b, problem.metric, kernels, values);
        }
    };
    parallel_for(tasks.size(), problem.n_threads, run, poll, stop);
}

}  // namespace gplfast::ops
