// SPDX-License-Identifier: Apache-2.0
#include "base/dispatch.h"

#include <atomic>
#include <cstring>

namespace zg {
namespace portable { const KernelTable& table(); }
#if ZG_HAS_AVX2
namespace avx2 { const KernelTable& table(); }
#endif
#if ZG_HAS_AVX512
namespace avx512 { const KernelTable& table(); }
#endif
#if ZG_HAS_AVX512VNNI
namespace avx512vnni { const KernelTable& table(); }
#endif

namespace {

// What this processor can run, the fastest first.
std::vector<const KernelTable*> supported() {
  std::vector<const KernelTable*> tables;
#if ZG_HAS_AVX2
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if ZG_HAS_AVX512
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if ZG_HAS_AVX512VNNI
  if (has_avx2 && has_avx512 && __builtin_cpu_supports("avx512vnni")) tables.push_back(&avx512vnni::table());
#endif
  if (has_avx2 && has_avx512) tables.push_back(&avx512::table());
#endif
  if (has_avx2) tables.push_back(&avx2::table());
#endif
  tables.push_back(&portable::table());
  return tables;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{supported().front()};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<const char*> supported_isas() {
  std::vector<const char*> names;
  for (const KernelTable* table : supported()) names.push_back(table->isa);
  return names;
}

bool select_isa(const char* name) {
  for (const KernelTable* table : supported()) {
    if (std::strcmp(table->isa, name) == 0) {
      current().store(table, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace zg
