// SPDX-License-Identifier: Apache-2.0
// The one compute pool of the native kernels.
//
// A call runs `body(context, task)` for every task in [0, num_tasks); tasks are handed out one by one from a counter, so that
// a core which is busy elsewhere takes fewer of them. Which thread runs a task never changes a result: tasks write disjoint
// outputs and share no accumulator. Workers spin briefly after a job, because the next kernel of a step follows within
// microseconds, and then sleep. One job at a time; concurrent callers wait for each other.
#pragma once
#include <cstdint>

namespace zg {

using TaskBody = void (*)(const void* context, int64_t task);

void parallel_for(int64_t num_tasks, TaskBody body, const void* context);
void set_num_threads(int num_threads);
int num_threads();

// Of one core, as the operating system tells; 512 KiB where it does not.
int64_t second_level_cache_bytes();

}  // namespace zg
