// What finds the similar pairs of dedup, in float32 or in bytes: the same pairs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "ops/dedup.h"

namespace gplfast::ops {

using Index = uint32_t;  // position in a list of row numbers

struct Pair {
    Index earlier;
    Index later;
};

// Compares blocks of later rows with runs of earlier ones.
class PairScanner {
  public:
    virtual ~PairScanner() = default;

    // Positions [begin, end) are the later rows from now on.
    virtual void set_later(size_t begin, size_t end) = 0;

    // Appends the similar pairs of an earlier row in [begin, end) and a later row behind it. May
    // run on several threads.
    virtual void find(size_t begin, size_t end, std::vector<Pair>& pairs) const = 0;

    // How many earlier rows a call of find is best given.
    virtual size_t run_rows() const = 0;
};

// Each compares the rows of problem.docs that `rows` lists; both must outlive it.
std::unique_ptr<PairScanner> float_pairs(const DedupProblem& problem,
                                         const std::vector<int64_t>& rows,
                                         const cpu::Kernels& kernels);

// Null when a sample of the pairs says that float_pairs is faster, which is never with `always`.
std::unique_ptr<PairScanner> int8_pairs(const DedupProblem& problem,
                                        const std::vector<int64_t>& rows,
                                        const cpu::Kernels& kernels, const cpu::Int8Kernels& int8,
                                        bool always, const std::function<void()>& poll);

}  // namespace gplfast::ops
