// SPDX-License-Identifier: Apache-2.0
// Low-rank adapters, many at a time: out[row, column ..] += scale * (x[row] A^T) B for the rows of each entry, by true rank, nothing padded.
//
//   entry  rows [first, first + count) | A [rank][K] | B [rank][n] | column, n, scale      (S-LoRA's MBGMV and MBGMM, arXiv 2311.03285)
//
// Rows of A and B may be assembled from shards of a pool through an index (MoS, arXiv 2410.00938): the sums run over the same values in the
// same order, so the bits are those of the assembled matrices.
//
// A row's result depends on the row and its adapter alone: each product of x with a row of A is one chain of multiply-adds per lane, the
// sum over ranks goes upwards. Entries that share rows write different columns.
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

constexpr int kRanksAtOnce = 4, kColumnsAtOnce = 4;  // independent chains hide the latency of a multiply-add

// Rows of a matrix: whole ones, or pieces of a pool.
template <typename W>
struct Rows {
  const W* base;
  const int32_t* index;
  int64_t shards, length;  // values per shard

  const W* at(int64_t row, int64_t shard) const { return base + (index ? index[row * shards + shard] : row * shards + shard) * length; }
};

// t[r] = x . A[first + r] for some rows of A.
template <int kCount, typename W>
void project(const float* x, const Rows<W>& a, int64_t first, float* t) {
  vec8 sums[kCount];
  for (int r = 0; r < kCount; ++r) sums[r] = zero8();
  for (int64_t shard = 0; shard < a.shards; ++shard, x += a.length) {
    const W* rows[kCount];
    for (int r = 0; r < kCount; ++r) rows[r] = a.at(first + r, shard);
    for (int64_t i = 0; i < a.length; i += 8) {
      const vec8 value = load8(x + i);
      for (int r = 0; r < kCount; ++r) sums[r] = fma8(value, load8(rows[r] + i), sums[r]);
    }
  }
  for (int r = 0; r < kCount; ++r) t[r] = sum8(sums[r]);
}

template <int kCount, typename W>
void expand(const float* t, const W* const* b, int64_t rank, float scale, int64_t c, float* out) {
  vec8 sums[kCount];
  for (int i = 0; i < kCount; ++i) sums[i] = zero8();
  for (int64_t r = 0; r < rank; ++r)
    for (int i = 0; i < kCount; ++i) sums[i] = fma8(set8(t[r]), load8(b[r] + c + 8 * i), sums[i]);
  for (int i = 0; i < kCount; ++i) store8(out + c + 8 * i, add8(load8(out + c + 8 * i), mul8(set8(scale), sums[i])));
}

template <typename W>
void rows(const LoraArgs& args, const LoraEntry& e, int64_t first, int64_t last) {
  const Rows<W> a{static_cast<const W*>(e.a), e.a_index, e.a_shards, args.k / e.a_shards};
  const Rows<W> b{static_cast<const W*>(e.b), e.b_index, e.b_shards, e.n / e.b_shards};
  float t[kLoraRowsPerTask][kMaxLoraRank];
  for (int64_t row = first; row < last; ++row) {
    const float* x = args.x + row * args.x_stride;
    int64_t r = 0;
    for (; r + kRanksAtOnce <= e.rank; r += kRanksAtOnce) project<kRanksAtOnce>(x, a, r, t[row - first] + r);
    for (; r < e.rank; ++r) project<1>(x, a, r, t[row - first] + r);
  }
  const W* shard_rows[kMaxLoraRank];
  for (int64_t shard = 0; shard < b.shards; ++shard) {
    for (int64_t r = 0; r < e.rank; ++r) shard_rows[r] = b.at(r, shard);
    for (int64_t row = first; row < last; ++row) {
      float* out = args.out + row * args.out_stride + e.column + shard * b.length;
      int64_t c = 0;
      for (; c + 8 * kColumnsAtOnce <= b.length; c += 8 * kColumnsAtOnce) expand<kColumnsAtOnce>(t[row - first], shard_rows, e.rank, e.scale, c, out);
      for (; c < b.length; c += 8) expand<1>(t[row - first], shard_rows, e.rank, e.scale, c, out);
    }
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
