// Threads of one call. They live as long as the call: nothing survives into a fork, and nothing is
// shared with another library's pool.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>

namespace gplfast {

// CPUs this process may use: its affinity mask, cut by the cgroup's CPU quota. At least 1.
size_t available_threads();

class StopFlag {
  public:
    bool is_set() const { return stop_.load(std::memory_order_relaxed); }
    void set() { stop_.store(true, std::memory_order_relaxed); }

  private:
    std::atomic<bool> stop_{false};
};

// Runs task(i) for i < n_tasks on n_threads threads, in no promised order. The calling thread waits
// and calls poll() many times a second and at the end; when poll or a task throws, `stop` is set,
// the tasks are left to end, and the exception continues here. Long tasks look at `stop` and return
// early. With n_threads = 0 the calling thread does the work, and nobody polls: for what takes less
// than a millisecond, in which threads would not even have started.
void parallel_for(size_t n_tasks, size_t n_threads, const std::function<void(size_t)>& task,
                  const std::function<void()>& poll, StopFlag& stop);

}  // namespace gplfast
