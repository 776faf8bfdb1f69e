// SPDX-License-Identifier: Apache-2.0
#include "base/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define ZG_PAUSE() _mm_pause()
#else
#define ZG_PAUSE() std::this_thread::yield()
#endif

namespace zg {
namespace {

// About 20 to 50 microseconds: longer than the gap between two kernels of a step, shorter than anything a neighbour notices.
constexpr int kSpins = 2000;

// The ticket holds (generation << 32 | next task). A task is claimed by moving the ticket on, so a worker that wakes late,
// or looks at a job's fields while they are being replaced, cannot claim anything: its compare-and-swap fails. Therefore the
// caller waits for tasks, never for workers, and a sleeping worker costs nothing but its help.
constexpr uint64_t kClosed = 0xffffffffu;

class Pool {
 public:
  explicit Pool(int num_threads) {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_stopping_.store(true);
      ticket_.store((generation() + 1) << 32 | kClosed);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(uint64_t num_tasks, TaskBody body, const void* context) {
    const uint64_t next_generation = generation() + 1;
    ticket_.store(next_generation << 32 | kClosed);
    body_.store(body);
    context_.store(context);
    num_tasks_.store(num_tasks);
    num_done_.store(0);
    bool has_sleepers;
    {
      // Under the mutex, so that a worker cannot fall asleep between our look at num_asleep_ and the notification.
      std::lock_guard<std::mutex> lock(mutex_);
      ticket_.store(next_generation << 32);
      has_sleepers = num_asleep_ > 0;
    }
    if (has_sleepers) wake_.notify_all();
    drain();
    for (int spins = 0; num_done_.load() < num_tasks; ++spins) {
      if (spins < kSpins) ZG_PAUSE();
      else std::this_thread::yield();
    }
  }

 private:
  uint64_t generation() const { return ticket_.load() >> 32; }

  void drain() {
    for (;;) {
      uint64_t ticket = ticket_.load();
      const TaskBody body = body_.load();
      const void* context = context_.load();
      const uint64_t num_tasks = num_tasks_.load();
      const uint64_t task = ticket & kClosed;
      if (task >= num_tasks) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      body(context, static_cast<int64_t>(task));
      num_done_.fetch_add(1);
    }
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      for (int spins = 0; generation() == seen && spins < kSpins; ++spins) ZG_PAUSE();
      if (generation() == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++num_asleep_;
        wake_.wait(lock, [&] { return generation() != seen; });
        --num_asleep_;
      }
      if (is_stopping_.load()) return;
      const uint64_t ticket = ticket_.load();
      if ((ticket & kClosed) == kClosed) continue;  // the next job is still being written
      seen = ticket >> 32;
      drain();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<uint64_t> ticket_{kClosed};
  alignas(64) std::atomic<uint64_t> num_done_{0};
  alignas(64) std::atomic<TaskBody> body_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<uint64_t> num_tasks_{0};
  std::atomic<bool> is_stopping_{false};
  int num_asleep_ = 0;
};

std::mutex job_mutex;

// Leaked on purpose: joining threads while the interpreter unloads modules would hang on some systems.
Pool*& pool() {
  static Pool* instance = new Pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  return instance;
}

}  // namespace

void parallel_for(int64_t num_tasks, TaskBody body, const void* context) {
  if (num_tasks <= 0) return;
  if (num_tasks == 1) {
    body(context, 0);
    return;
  }
  std::lock_guard<std::mutex> lock(job_mutex);
  Pool* current = pool();
  if (current->size() == 1) {
    for (int64_t task = 0; task < num_tasks; ++task) body(context, task);
    return;
  }
  current->run(static_cast<uint64_t>(num_tasks), body, context);
}

void set_num_threads(int num_threads) {
  std::lock_guard<std::mutex> lock(job_mutex);
  Pool*& current = pool();
  if (current->size() == num_threads) return;
  delete current;
  current = new Pool(num_threads);
}

int num_threads() {
  std::lock_guard<std::mutex> lock(job_mutex);
  return pool()->size();
}

int64_t second_level_cache_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found > 0) return static_cast<int64_t>(found);
#endif
    return int64_t{512} << 10;
  }();
  return bytes;
}

}  // namespace zg
