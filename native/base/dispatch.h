// SPDX-License-Identifier: Apache-2.0
// Which instruction set the kernels run on: chosen once by cpuid, may be overridden by name for tests.
#pragma once
#include <vector>

#include "kernels/table.h"

namespace zg {

const KernelTable& kernels();
// False if this machine or this build cannot run it; then nothing changes.
bool select_isa(const char* name);
std::vector<const char*> supported_isas();  // the fastest first

}  // namespace zg
