#include "common/parallel.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "common/float_environment.h"

namespace gplfast {
namespace {

constexpr auto poll_interval = std::chrono::milliseconds(50);

// CPUs by the quota of the control group, rounded up; 0 when there is none.
size_t quota_threads() {
    std::string quota;
    double period_us = 0.0;
    if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> quota >> period_us) {
        if (quota == "max") return 0;
    } else {
        std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
        std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
        if (!(v1_quota >> quota) || !(v1_period >> period_us)) return 0;
    }
    char* end = nullptr;
    const double quota_us = std::strtod(quota.c_str(), &end);
    if (end == quota.c_str() || quota_us <= 0.0 || period_us <= 0.0) return 0;
    return static_cast<size_t>((quota_us + period_us - 1.0) / period_us);
}

// What the workers of one call share.
class Team {
  public:
    Team(size_t n_tasks, const std::function<void(size_t)>& task, StopFlag& stop)
        : n_tasks_(n_tasks), task_(task), stop_(stop) {}

    void work() {
        const FloatEnvironment environment;
        try {
            for (size_t i = next_++; i < n_tasks_ && !stop_.is_set(); i = next_++) task_(i);
        } catch (...) {
            fail(std::current_exception());
        }
        const std::lock_guard lock(mutex_);
        ++n_done_;
        done_.notify_one();
    }

    void fail(std::exception_ptr error) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::move(error);
        stop_.set();
    }

    void wait(size_t n_workers, const std::function<void()>& poll) {
        std::unique_lock lock(mutex_);
        while (!done_.wait_for(lock, poll_interval, [&] { return n_done_ == n_workers; })) {
            if (stop_.is_set()) continue;
            lock.unlock();
            try {
                poll();
            } catch (...) {
                fail(std::current_exception());
            }
            lock.lock();
        }
    }

    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

  private:
    const size_t n_tasks_;
    const std::function<void(size_t)>& task_;
    StopFlag& stop_;
    std::atomic<size_t> next_{0};
    std::mutex mutex_;
    std::condition_variable done_;
    size_t n_done_ = 0;
    std::exception_ptr error_;
};

}  // namespace

size_t available_threads() {
    size_t n = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
    cpu_set_t affinity;
    if (sched_getaffinity(0, sizeof(affinity), &affinity) == 0) {
        n = static_cast<size_t>(std::max(1, CPU_COUNT(&affinity)));
    }
#endif
    if (const size_t quota = quota_threads(); quota > 0) n = std::min(n, quota);
    return n;
}

void parallel_for(size_t n_tasks, size_t n_threads, const std::function<void(size_t)>& task,
                  const std::function<void()>& poll, StopFlag& stop) {
    if (n_tasks == 0) return;
    if (n_threads == 0) {
        const FloatEnvironment environment;
        for (size_t i = 0; i < n_tasks; ++i) task(i);
        return;
    }
    Team team(n_tasks, task, stop);
    std::vector<std::thread> workers;
    const size_t n_wanted = std::clamp<size_t>(n_threads, 1, n_tasks);
    workers.reserve(n_wanted);
    try {
        while (workers.size() < n_wanted) workers.emplace_back([&team] { team.work(); });
    } catch (...) {  // the system gives no more threads: those that run must end first
        team.fail(std::current_exception());
    }
    team.wait(workers.size(), poll);
    for (auto& worker : workers) worker.join();
    team.rethrow();
    poll();  // many short calls in a row would otherwise never ask
}

}  // namespace gplfast
