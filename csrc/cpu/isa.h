// Which instruction sets this build and this CPU have, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace gplfast::cpu {

enum class Isa { scalar, avx2, avx512, avx512_vnni, amx_int8 };  // ascending preference

const char* isa_name(Isa isa);

// What this build has and this CPU runs, in ascending preference; scalar is always there.
std::vector<Isa> available_isas();

// The forced instruction set (force_isa, else the environment's GPLFAST_ISA), else the best.
// Throws UnavailableError when the forced one is unknown or does not run here.
Isa current_isa();

// Forces one by name for this process; an empty name goes back to the environment's choice.
void force_isa(const std::string& name);

// What an operation runs on.
struct KernelSet {
    const Kernels* floats;
    const Int8Kernels* int8;  // nullptr: the instruction set has no integer scan
    bool is_forced;           // use it whatever the shape
};

// The kernels of current_isa().
KernelSet current_kernels();

}  // namespace gplfast::cpu
