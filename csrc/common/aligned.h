// A growing buffer whose start lies on a cache line, so that no vector load crosses one.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace gplfast {

template <class T>
class AlignedBuffer {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    // Room for n values; what was there is lost when it grows.
    T* resize(size_t n) {
        if (n > capacity_) {
            values_.reset(static_cast<T*>(::operator new(n * sizeof(T), alignment)));
            capacity_ = n;
        }
        return values_.get();
    }

    T* data() { return values_.get(); }
    const T* data() const { return values_.get(); }

  private:
    static constexpr std::align_val_t alignment{64};
    struct Delete {
        void operator()(T* values) const { ::operator delete(values, alignment); }
    };
    std::unique_ptr<T[], Delete> values_;
    size_t capacity_ = 0;
};

}  // namespace gplfast
