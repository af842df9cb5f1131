// Hints to the system about the memory of a mapped file.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace gplfast {

// A mapped file up to this size is left in memory once it was read. Tests make it small.
inline std::atomic<size_t> max_resident_bytes{size_t{1} << 30};

namespace pages {

#if defined(__linux__)
inline void advise(const void* data, size_t n_bytes, int advice) {
    static const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page_bytes * page_bytes;
    const uintptr_t end = reinterpret_cast<uintptr_t>(data) + n_bytes;
    // Only a hint: when it fails the answer is the same.
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}
#endif

}  // namespace pages

// Only for a read-only map of a file: other memory would lose its contents.
inline void drop_pages([[maybe_unused]] const void* data, [[maybe_unused]] size_t n_bytes) {
#if defined(__linux__)
    if (n_bytes > 0) pages::advise(data, n_bytes, MADV_DONTNEED);
#endif
}

// Starts reading ahead.
inline void want_pages([[maybe_unused]] const void* data, [[maybe_unused]] size_t n_bytes) {
#if defined(__linux__)
    if (n_bytes > 0) pages::advise(data, n_bytes, MADV_WILLNEED);
#endif
}

}  // namespace gplfast
