// What this machine can do at most, measured: the denominator of a benchmark's "share of the peak".
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "cpu/isa.h"

namespace gplfast::ops {

struct PeakProblem {
    size_t n_threads;
    double seconds;  // how long each thread works
};

// Operations a second of the kernels' multiply-adds on registers, two each; all threads together.
double float32_peak(const cpu::KernelSet& kernels, const PeakProblem& problem,
                    const std::function<void()>& poll);
double int8_peak(const cpu::KernelSet& kernels, const PeakProblem& problem,
                 const std::function<void()>& poll);

// Bytes a second of adding up `words`, each thread its own part, again and again. Writes to all of
// them first, so that they have pages of their own.
double read_peak(uint64_t* words, size_t n_words, const PeakProblem& problem,
                 const std::function<void()>& poll);

}  // namespace gplfast::ops
