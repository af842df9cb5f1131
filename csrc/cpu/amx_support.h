// Whether this process may use AMX's tiles and their products of bytes.
#pragma once

namespace gplfast::cpu {

// Asks the processor, the operating system and, at the first call, the kernel's permission for the
// tiles' registers, which holds for the process and its children. False where one of them says no.
bool may_use_amx_int8();

}  // namespace gplfast::cpu
