#include "ops/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>

#include "common/parallel.h"
#include "ops/int8_panels.h"

namespace gplfast::ops {
namespace {

// work(thread) returns how much it did. Every thread repeats it for the asked time; their rates are
// added.
double total_rate(const PeakProblem& problem, const std::function<double(size_t)>& work,
                  const std::function<void()>& poll) {
    using Clock = std::chrono::steady_clock;
    double total = 0.0;
    std::mutex mutex;
    StopFlag stop;
    const auto run = [&](size_t thread) {
        const auto start = Clock::now();
        double done = 0.0, seconds = 0.0;
        do {
            done += work(thread);
            seconds = std::chrono::duration<double>(Clock::now() - start).count();
        } while (seconds < problem.seconds && !stop.is_set());
        const std::lock_guard lock(mutex);
        total += done / seconds;
    };
    parallel_for(problem.n_threads, problem.n_threads, run, poll, stop);
    return total;
}

// About 0.1 ms, so that looking at the clock costs nothing.
constexpr uint64_t n_rounds = uint64_t{1} << 16;

}  // namespace

double float32_peak(const cpu::KernelSet& kernels, const PeakProblem& problem,
                    const std::function<void()>& poll) {
    const auto work = [&](size_t) {
        float value = 0.5f;  // sums go to 1: no subnormals
        return 2.0 * static_cast<double>(kernels.floats->multiply_add(n_rounds, &value));
    };
    return total_rate(problem, work, poll);
}

double int8_peak(const cpu::KernelSet& kernels, const PeakProblem& problem,
                 const std::function<void()>& poll) {
    const auto work = [&](size_t) {
        const KernelState state(*kernels.int8);
        int32_t value = 0x01010101;
        return 2.0 * static_cast<double>(kernels.int8->multiply_add(n_rounds, &value));
    };
    return total_rate(problem, work, poll);
}

double read_peak(uint64_t* words, size_t n_words, const PeakProblem& problem,
                 const std::function<void()>& poll) {
    const size_t share = n_words / problem.n_threads;
    StopFlag stop;
    const auto touch = [&](size_t thread) { std::fill_n(words + thread * share, share, thread); };
    parallel_for(problem.n_threads, problem.n_threads, touch, poll, stop);
    std::atomic<uint64_t> result{0};
    const auto work = [&](size_t thread) {
        const uint64_t* part = words + thread * share;
        uint64_t sum = 0;
        for (size_t i = 0; i < share; ++i) sum += part[i];
        result.fetch_add(sum, std::memory_order_relaxed);  // so that the loop is not left out
        return static_cast<double>(share * sizeof(uint64_t));
    };
    return total_rate(problem, work, poll);
}

}  // namespace gplfast::ops
