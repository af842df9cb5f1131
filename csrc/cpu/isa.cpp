#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "common/errors.h"
#include "cpu/amx_support.h"

namespace gplfast::cpu {
namespace {

struct Entry {
    Isa isa;
    const char* name;
    const Kernels* kernels;
    const Int8Kernels* int8;
    bool (*is_supported)();
};

// A new instruction set is one more row here.
const Entry entries[] = {
    {Isa::scalar, "scalar", &kernels_scalar, nullptr, [] { return true; }},
#if defined(GPLFAST_X86)
    {Isa::avx2, "avx2", &kernels_avx2, nullptr,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
     }},
    {Isa::avx512, "avx512", &kernels_avx512, nullptr,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx2") &&
                __builtin_cpu_supports("fma");
     }},
    {Isa::avx512_vnni, "avx512_vnni", &kernels_avx512, &kernels_avx512_vnni,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx2") &&
                __builtin_cpu_supports("fma");
     }},
    {Isa::amx_int8, "amx_int8", &kernels_avx512, &kernels_amx_int8,
     [] {
         // VNNI: of the narrow kernels.
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx2") &&
                __builtin_cpu_supports("fma") && may_use_amx_int8();
     }},
#endif
};

std::atomic<const Entry*> forced{nullptr};

const Entry& find_available(const std::string& name, const char* source) {
    std::string available;
    for (const Entry& entry : entries) {
        if (!entry.is_supported()) continue;
        if (name == entry.name) return entry;
        available += (available.empty() ? "" : ", ") + std::string(entry.name);
    }
    throw UnavailableError(std::string(source) + ": instruction set '" + name +
                           "' is not available here; available are " + available);
}

const Entry& entry_of(Isa isa) {
    for (const Entry& entry : entries) {
        if (entry.isa == isa) return entry;
    }
    return entries[0];
}

const Entry* forced_entry() {
    if (const Entry* entry = forced.load()) return entry;
    const char* name = std::getenv("GPLFAST_ISA");
    return name && *name ? &find_available(name, "GPLFAST_ISA") : nullptr;
}

}  // namespace

const char* isa_name(Isa isa) {
    return entry_of(isa).name;
}

std::vector<Isa> available_isas() {
    std::vector<Isa> isas;
    for (const Entry& entry : entries) {
        if (entry.is_supported()) isas.push_back(entry.isa);
    }
    return isas;
}

Isa current_isa() {
    if (const Entry* entry = forced_entry()) return entry->isa;
    static const Isa best = available_isas().back();
    return best;
}

void force_isa(const std::string& name) {
    forced.store(name.empty() ? nullptr : &find_available(name, "force_isa"));
}

KernelSet current_kernels() {
    const Entry& entry = entry_of(current_isa());
    return {entry.kernels, entry.int8, forced_entry() != nullptr};
}

}  // namespace gplfast::cpu
