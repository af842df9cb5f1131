// The parts of the module, one function each, and what they share.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <string>

#include "common/canonical.h"
#include "cpu/isa.h"
#include "ops/search.h"

namespace gplfast::bindings {

void register_ops(pybind11::module_& m);
void register_index(pybind11::module_& m);

// Lets Ctrl-C through, for one call of an operation. Made with the GIL; called from the thread that
// called us, which holds no GIL at that moment; getting it may take 5 ms where Python's other
// threads are busy.
//
// Python handles signals on its main thread only. Another thread never asks here for the GIL: when
// the interpreter ends while a daemon thread works, Python unwinds whoever asks, through our
// frames.
class SignalCheck {
  public:
    SignalCheck();
    void operator()();

  private:
    bool is_main_thread_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

Metric metric_from(const std::string& name, const char* op);

// Allocates the answer, releases the GIL and searches: (scores, ids).
pybind11::tuple run_search(const ops::SearchProblem& problem, const cpu::KernelSet& kernels);

}  // namespace gplfast::bindings
