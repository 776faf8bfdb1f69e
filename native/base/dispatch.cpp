// SPDX-License-Identifier: Apache-2.0
#include "base/dispatch.h"

#include <atomic>
#include <cstring>
#include <initializer_list>

namespace zg {
namespace portable { const KernelTable& table(); }
#if ZG_HAS_AVX2
namespace avx2 { const KernelTable& table(); }
#endif

namespace {

const KernelTable* best() {
#if ZG_HAS_AVX2
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return &avx2::table();
#endif
  return &portable::table();
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{best()};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

bool select_isa(const char* name) {
  for (const KernelTable* table : {best(), &portable::table()}) {
    if (std::strcmp(table->isa, name) == 0) {
      current().store(table, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace zg
