// Round to nearest, keep subnormals: for the lifetime of the guard, whatever the process has set
// (torch.set_flush_denormal, libraries built with -ffast-math). The contract depends on it.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace gplfast {

class FloatEnvironment {
  public:
    FloatEnvironment(const FloatEnvironment&) = delete;
    FloatEnvironment& operator=(const FloatEnvironment&) = delete;
#if defined(__SSE2__)
    FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~FloatEnvironment() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#else
    FloatEnvironment() = default;
#endif
};

}  // namespace gplfast
