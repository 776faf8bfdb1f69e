// SPDX-License-Identifier: Apache-2.0
// A lambda over the compute pool, without anything from the standard library (see vec.h).
#pragma once
#include "base/thread_pool.h"
#include "kernels/table.h"

namespace zg {
namespace ZG_ISA {

template <typename Body>
inline void for_tasks(int64_t num_tasks, const Body& body) {
  parallel_for(num_tasks, [](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); }, &body);
}

// body(first, last) over [0, num_rows) in chunks that are worth a thread: `cost` is roughly the operations of one row.
template <typename Body>
inline void for_rows(int64_t num_rows, int64_t cost, const Body& body) {
  constexpr int64_t kMinCost = 16384;
  const int64_t rows = cost >= kMinCost ? 1 : (kMinCost + cost - 1) / (cost > 0 ? cost : 1);
  for_tasks((num_rows + rows - 1) / rows, [&](int64_t task) {
    const int64_t first = task * rows, last = first + rows < num_rows ? first + rows : num_rows;
    body(first, last);
  });
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace ZG_ISA
}  // namespace zg
