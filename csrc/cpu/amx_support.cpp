#include "cpu/amx_support.h"

#if defined(GPLFAST_X86) && defined(__linux__) && !defined(GPLFAST_EMULATE_AMX)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace gplfast::cpu {
namespace {

struct Registers {
    uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r{};
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros: no such leaf
    return r;
}

// The compiler's names for these features are younger than the compilers we build with.
bool has_instructions() {
    constexpr uint32_t amx_tile = 1u << 24, amx_int8 = 1u << 25;
    const uint32_t features = cpuid(7, 0).edx;
    return (features & amx_tile) && (features & amx_int8);
}

// Palette 1 as the kernel configures it: eight tiles of 16 rows of 64 bytes.
bool has_palette() {
    const Registers palette = cpuid(0x1d, 1);
    const uint32_t row_bytes = palette.ebx & 0xffff, n_tiles = palette.ebx >> 16;
    const uint32_t rows = palette.ecx & 0xffff;
    return row_bytes >= 64 && n_tiles >= 8 && rows >= 16;
}

// Whether the operating system saves the tiles when it switches threads.
bool saves_tiles() {
    constexpr uint32_t osxsave = 1u << 27;
    constexpr uint32_t xtilecfg = 1u << 17, xtiledata = 1u << 18;
    if (!(cpuid(1, 0).ecx & osxsave)) return false;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & xtilecfg) && (low & xtiledata);
}

bool ask_permission() {
    constexpr long req_xcomp_perm = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h, Linux 5.16
    constexpr long xtiledata = 18;
    return syscall(SYS_arch_prctl, req_xcomp_perm, xtiledata) == 0;
}

}  // namespace

bool may_use_amx_int8() {
    static const bool may =
        has_instructions() && has_palette() && saves_tiles() && ask_permission();
    return may;
}

}  // namespace gplfast::cpu

#else

namespace gplfast::cpu {

bool may_use_amx_int8() {
#if defined(GPLFAST_EMULATE_AMX)
    return true;
#else
    return false;
#endif
}

}  // namespace gplfast::cpu

#endif
