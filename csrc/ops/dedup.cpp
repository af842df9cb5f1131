#include "ops/dedup.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "common/float_environment.h"
#include "common/hash.h"
#include "common/integers.h"
#include "common/parallel.h"
#include "ops/pairs.h"

namespace gplfast::ops {
namespace {

// Rows grouped by their bytes. Copies of a row score the same with everything, so one of each
// group goes into the scan: a corpus with m copies of a row would cost m^2 pairs otherwise.
struct DistinctRows {
    std::vector<int64_t> rows;     // first row of each group, in the order in which rows may stay
    std::vector<uint64_t> copies;  // rows in the group
    std::vector<int64_t> first;    // for every row: the first row of its group
    uint64_t n_pairs = 0;          // within groups
};

// Groups rows that are the same bytes and similar to themselves. (A zero row has cosine 0 with its
// copies: those stay apart.)
class CopyFinder {
  public:
    CopyFinder(const DedupProblem& problem, const cpu::Kernels& kernels,
               const std::function<void()>& poll)
        : problem_(problem),
          docs_(problem.docs),
          n_(docs_.n_rows()),
          hashes_(n_),
          is_groupable_(n_),
          order_(n_),
          n_copies_(n_, 1) {
        examine(kernels, poll);
        distinct_.first.resize(n_);
        std::iota(distinct_.first.begin(), distinct_.first.end(), int64_t{0});
        group(poll);
        for (size_t i = 0; i < n_; ++i) {
            const int64_t row = row_at(i);
            if (distinct_.first[row] != row) continue;
            distinct_.rows.push_back(row);
            distinct_.copies.push_back(n_copies_[row]);
        }
    }

    DistinctRows take() { return std::move(distinct_); }

  private:
    // Copies are in one bucket, by the hash's highest bits: sorting all rows at once would take
    // seconds in which nobody polls.
    static constexpr size_t bucket_bits = 10;
    static constexpr size_t n_buckets = size_t{1} << bucket_bits;

    // The i-th row in the order in which rows may stay.
    int64_t row_at(size_t i) const {
        return static_cast<int64_t>(problem_.keep_last ? n_ - 1 - i : i);
    }
    size_t bucket_of(int64_t row) const { return hashes_[row] >> (64 - bucket_bits); }

    void examine(const cpu::Kernels& kernels, const std::function<void()>& poll) {
        constexpr size_t chunk = 4096;
        StopFlag stop;
        const auto run_chunk = [&](size_t task) {
            std::vector<float> work(docs_.dim());
            for (size_t i = task * chunk; i < std::min(n_, (task + 1) * chunk); ++i) {
                const float* row = docs_.row(i, work.data());
                const double square = kernels.dot(row, row, docs_.dim());
                const double norm = std::sqrt(square);
                hashes_[i] = hash_bytes(docs_.stored(i), docs_.row_bytes());
                is_groupable_[i] =
                    canonical_score(square, norm, norm, problem_.metric) >= problem_.threshold;
            }
        };
        parallel_for(ceil_div(n_, chunk), problem_.n_threads, run_chunk, poll, stop);
    }

    void group(const std::function<void()>& poll) {
        std::vector<size_t> starts(n_buckets + 1, 0);
        for (size_t i = 0; i < n_; ++i) ++starts[bucket_of(row_at(i)) + 1];
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        std::vector<size_t> places(starts.begin(), starts.end() - 1);
        for (size_t i = 0; i < n_; ++i) order_[places[bucket_of(row_at(i))]++] = row_at(i);
        std::vector<uint64_t> n_pairs(n_buckets, 0);
        StopFlag stop;
        const auto run_bucket = [&](size_t b) {
            n_pairs[b] = group_bucket(order_.begin() + starts[b], order_.begin() + starts[b + 1]);
        };
        parallel_for(n_buckets, problem_.n_threads, run_bucket, poll, stop);
        distinct_.n_pairs = std::accumulate(n_pairs.begin(), n_pairs.end(), uint64_t{0});
    }

    using Rows = std::vector<int64_t>::iterator;

    // Returns the number of pairs of copies.
    uint64_t group_bucket(Rows begin, Rows bucket_end) {
        std::stable_sort(begin, bucket_end,
                         [&](int64_t a, int64_t b) { return hashes_[a] < hashes_[b]; });
        uint64_t n_pairs = 0;
        for (Rows end = begin; begin != bucket_end; begin = end) {
            while (end != bucket_end && hashes_[*end] == hashes_[*begin]) ++end;
            std::vector<int64_t> leaders;  // more than one only when hashes collide
            for (Rows row = begin; row != end; ++row) {
                if (!is_groupable_[*row]) continue;
                const auto leader =
                    std::find_if(leaders.begin(), leaders.end(),
                                 [&](int64_t other) { return are_copies(other, *row); });
                if (leader == leaders.end()) {
                    leaders.push_back(*row);
                } else {
                    distinct_.first[*row] = *leader;
                    n_pairs += n_copies_[*leader]++;
                }
            }
        }
        return n_pairs;
    }

    bool are_copies(int64_t a, int64_t b) const {
        return std::memcmp(docs_.stored(a), docs_.stored(b), docs_.row_bytes()) == 0;
    }

    const DedupProblem& problem_;
    const RowSource& docs_;
    const size_t n_;
    std::vector<uint64_t> hashes_;
    std::vector<char> is_groupable_;
    std::vector<int64_t> order_;
    std::vector<uint64_t> n_copies_;  // of first rows
    DistinctRows distinct_;
};

// What the pairs decide. `leader_[i]` is i while i stays. Pairs may come in any order; only the
// greedy rule waits for end_block, when all pairs of the block's rows are known.
class Verdict {
  public:
    Verdict(DuplicateRule rule, size_t n) : rule_(rule), leader_(n) {
        std::iota(leader_.begin(), leader_.end(), Index{0});
    }

    void add(const Pair& pair, Index block_begin) {
        const auto [earlier, later] = pair;
        if (rule_ == DuplicateRule::components) {
            unite(earlier, later);
        } else if (rule_ == DuplicateRule::any_earlier || earlier < block_begin) {
            // Under the greedy rule rows before the block are decided: only those that stay count.
            if (rule_ == DuplicateRule::greedy && leader_[earlier] != earlier) return;
            leader_[later] = std::min(leader_[later], earlier);
        } else {
            undecided_.push_back(pair);
        }
    }

    void end_block() {
        std::sort(undecided_.begin(), undecided_.end(), [](const Pair& a, const Pair& b) {
            return a.later < b.later || (a.later == b.later && a.earlier < b.earlier);
        });
        for (const auto& [earlier, later] : undecided_) {
            if (leader_[earlier] == earlier) leader_[later] = std::min(leader_[later], earlier);
        }
        undecided_.clear();
    }

    // The row that stays for each row; for any_earlier, at the end of the chain of lowest rows.
    std::vector<Index> leaders() {
        for (Index i = 0; i < leader_.size(); ++i) leader_[i] = leader_[leader_[i]];
        return std::move(leader_);
    }

  private:
    Index root(Index i) {
        while (leader_[i] != i) i = leader_[i] = leader_[leader_[i]];  // path halving
        return i;
    }

    void unite(Index a, Index b) {
        a = root(a);
        b = root(b);
        leader_[std::max(a, b)] = std::min(a, b);
    }

    DuplicateRule rule_;
    std::vector<Index> leader_;
    std::vector<Pair> undecided_;
};

// Scans the upper triangle in blocks of later rows, earlier rows in parallel within each. Returns
// the number of similar pairs.
uint64_t scan_triangle(const DedupProblem& problem, const DistinctRows& distinct,
                       PairScanner& scanner, Verdict& verdict, const std::function<void()>& poll) {
    const size_t n = distinct.rows.size();
    const size_t block_rows = problem.block_rows ? problem.block_rows : 2048;
    const size_t run_rows = problem.block_rows ? problem.block_rows : scanner.run_rows();
    uint64_t n_pairs = 0;
    std::mutex mutex;
    for (size_t begin = 0; begin < n; begin += block_rows) {
        const size_t end = std::min(n, begin + block_rows);
        scanner.set_later(begin, end);
        StopFlag stop;
        const auto scan_run = [&](size_t task) {
            std::vector<Pair> pairs;
            scanner.find(task * run_rows, std::min(end, (task + 1) * run_rows), pairs);
            const std::lock_guard lock(mutex);
            for (const Pair& pair : pairs) {
                verdict.add(pair, static_cast<Index>(begin));
                n_pairs += distinct.copies[pair.earlier] * distinct.copies[pair.later];
            }
        };
        parallel_for(ceil_div(end, run_rows), problem.n_threads, scan_run, poll, stop);
        verdict.end_block();
    }
    return n_pairs;
}

}  // namespace

uint64_t dedup(const DedupProblem& problem, const cpu::KernelSet& kernels,
               const std::function<void()>& poll, int64_t* representative) {
    const size_t n = problem.docs.n_rows();
    if (n == 0) return 0;
    const FloatEnvironment environment;  // rows are packed and bounds are made on this thread too
    const DistinctRows distinct = CopyFinder(problem, *kernels.floats, poll).take();
    Verdict verdict(problem.rule, distinct.rows.size());
    std::unique_ptr<PairScanner> scanner;
    if (kernels.int8 && problem.docs.dim() <= cpu::max_int8_dim) {
        scanner = int8_pairs(problem, distinct.rows, *kernels.floats, *kernels.int8,
                             kernels.is_forced, poll);
    }
    if (!scanner) scanner = float_pairs(problem, distinct.rows, *kernels.floats);
    const uint64_t n_pairs = scan_triangle(problem, distinct, *scanner, verdict, poll);
    const std::vector<Index> leaders = verdict.leaders();
    for (size_t i = 0; i < leaders.size(); ++i) {
        representative[distinct.rows[i]] = distinct.rows[leaders[i]];
    }
    for (size_t row = 0; row < n; ++row) {
        if (distinct.first[row] != static_cast<int64_t>(row)) {
            representative[row] = representative[distinct.first[row]];
        }
    }
    return distinct.n_pairs + n_pairs;
}

}  // namespace gplfast::ops
