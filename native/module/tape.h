// SPDX-License-Identifier: Apache-2.0
// Calls to repeat: a step of a known shape is the same kernels with the same addresses, so that checking shapes and crossing from
// Python once is enough. Recording is per thread; a call that throws is not kept.
#pragma once
#include <functional>
#include <utility>
#include <vector>

namespace zg {

class Tape {
 public:
  void start() { recording() = this; }
  static void stop() { recording() = nullptr; }
  void play() const {
    for (const auto& call : calls_) call();
  }
  void add(std::function<void()> call) { calls_.push_back(std::move(call)); }
  size_t size() const { return calls_.size(); }

  static Tape*& recording() {
    static thread_local Tape* tape = nullptr;
    return tape;
  }

 private:
  std::vector<std::function<void()>> calls_;
};

// The function, and on a thread that records one entry of its tape.
template <auto kFunction>
struct Recorded;

template <typename... Arguments, void (*kFunction)(Arguments...)>
struct Recorded<kFunction> {
  static void call(Arguments... arguments) {
    kFunction(arguments...);
    if (Tape* tape = Tape::recording()) tape->add([arguments...] { kFunction(arguments...); });
  }
};

}  // namespace zg
