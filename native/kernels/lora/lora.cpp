// SPDX-License-Identifier: Apache-2.0
// Low-rank adapters, many at a time: out[row, column ..] += scale * (x[row] A^T) B for the rows of each entry, by true rank, nothing padded.
//
//   entry  rows [first, first + count) | A [rank][K] | B [rank][n] | column, n, scale      (S-LoRA's MBGMV and MBGMM, arXiv 2311.03285)
//
// A row's result depends on the row and its adapter alone: each product of x with a row of A is one chain of multiply-adds per lane, the
// sum over ranks goes upwards. Entries that share rows write different columns.
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

constexpr int kRanksAtOnce = 4, kColumnsAtOnce = 4;  // independent chains hide the latency of a multiply-add

// t[r] = x . A[r] for some rows of A.
template <int kCount, typename W>
void project(const float* x, const W* a, int64_t k, float* t) {
  vec8 sums[kCount];
  for (int r = 0; r < kCount; ++r) sums[r] = zero8();
  for (int64_t i = 0; i < k; i += 8) {
    const vec8 value = load8(x + i);
    for (int r = 0; r < kCount; ++r) sums[r] = fma8(value, load8(a + r * k + i), sums[r]);
  }
  for (int r = 0; r < kCount; ++r) t[r] = sum8(sums[r]);
}

template <int kCount, typename W>
void expand(const float* t, const W* b, int64_t rank, int64_t n, float scale, float* out) {
  vec8 sums[kCount];
  for (int c = 0; c < kCount; ++c) sums[c] = zero8();
  for (int64_t r = 0; r < rank; ++r)
    for (int c = 0; c < kCount; ++c) sums[c] = fma8(set8(t[r]), load8(b + r * n + 8 * c), sums[c]);
  for (int c = 0; c < kCount; ++c) store8(out + 8 * c, add8(load8(out + 8 * c), mul8(set8(scale), sums[c])));
}

template <typename W>
void rows(const LoraArgs& args, const LoraEntry& e, int64_t first, int64_t last) {
  const W *a = static_cast<const W*>(e.a), *b = static_cast<const W*>(e.b);
  float t[kMaxLoraRank];
  for (int64_t row = first; row < last; ++row) {
    const float* x = args.x + row * args.x_stride;
    float* out = args.out + row * args.out_stride + e.column;
    int64_t r = 0;
    for (; r + kRanksAtOnce <= e.rank; r += kRanksAtOnce) project<kRanksAtOnce>(x, a + r * args.k, args.k, t + r);
    for (; r < e.rank; ++r) project<1>(x, a + r * args.k, args.k, t + r);
    int64_t c = 0;
    for (; c + 8 * kColumnsAtOnce <= e.n; c += 8 * kColumnsAtOnce) expand<kColumnsAtOnce>(t, b + c, e.rank, e.n, e.scale, out + c);
    for (; c < e.n; c += 8) expand<1>(t, b + c, e.rank, e.n, e.scale, out + c);
  }
}

}  // namespace

void lora(const LoraArgs& args) {
  for_tasks(args.task_starts[args.num_entries], [&](int64_t task) {
    int64_t low = 0, high = args.num_entries - 1;  // the entry whose tasks hold this one
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (args.task_starts[middle] <= task) low = middle;
      else high = middle - 1;
    }
    const LoraEntry& e = args.entries[low];
    const int64_t first = e.first_row + (task - args.task_starts[low]) * kLoraRowsPerTask;
    const int64_t last = least(e.first_row + e.num_rows, first + kLoraRowsPerTask);
    switch (e.dtype) {
      case DType::f32: return rows<float>(args, e, first, last);
      case DType::bf16: return rows<bf16>(args, e, first, last);
      case DType::f16: return rows<f16>(args, e, first, last);
    }
  });
}

}  // namespace ZG_ISA
}  // namespace zg
