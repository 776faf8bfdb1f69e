// SPDX-License-Identifier: Apache-2.0
// out[t, n] = sum over k of x[t, k] * W[n, k]   (+ bias[n])   (+ out[t, n])
//
// The product is in tile.h; bias and what out held are added to it afterwards, in this order.
#include "kernels/linear/tile.h"
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

constexpr int64_t kTaskWork = 16384;   // multiply-adds of eight lanes that are worth a thread's while: a few microseconds
constexpr int64_t kTasksPerThread = 4;  // so that a thread that is held up leaves the rest to the others
constexpr int64_t kTaskRows = 48;       // many rows are cut, too: the next band reads the same weights again, from a cache

inline vec8 finish(vec8 sum, const LinearArgs& a, float* out, int64_t column, int64_t lanes) {
  const bool is_whole = lanes >= 8;
  if (a.bias != nullptr) sum = add8(sum, is_whole ? load8(a.bias + column) : load_some8(a.bias + column, lanes));
  if (a.accumulate) sum = add8(sum, is_whole ? load8(out) : load_some8(out, lanes));
  return sum;
}

inline void put(vec8 sum, const LinearArgs& a, int64_t row, int64_t column) {
  const int64_t lanes = least(8, a.n - column);
  if (lanes <= 0) return;
  float* out = a.out + row * a.out_stride + column;
  sum = finish(sum, a, out, column, lanes);
  if (lanes == 8) store8(out, sum);
  else store_some8(out, sum, lanes);
}

template <typename W>
void run(const LinearArgs& a) {
  if (a.num_rows == 0) return;
  const int64_t num_panels = (a.n + kPanelWidth - 1) / kPanelWidth;
  const int64_t work = num_panels * a.k * 2 * a.num_rows;
  const int64_t num_columns = most(1, least(work / kTaskWork, kTasksPerThread * num_threads()));
  const int64_t num_bands = most(1, least(work / kTaskWork / num_columns, a.num_rows / kTaskRows));
  for_tasks(num_columns * num_bands, [&](int64_t i) {
    const int64_t column = i / num_bands, band = i % num_bands;
    const int64_t first_row = band * a.num_rows / num_bands, last_row = (band + 1) * a.num_rows / num_bands;
    product(
        static_cast<const W*>(a.panels), a.k, last_row - first_row, column * num_panels / num_columns,
        (column + 1) * num_panels / num_columns, [&](int64_t row) { return a.x + (first_row + row) * a.x_stride; },
        [&](int64_t row, int64_t column, vec8 sum) { put(sum, a, first_row + row, column); });
  });
}

template <typename W>
void embed(const EmbedArgs& a) {
  for_rows(a.num_rows, a.k * 8, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const int64_t id = a.ids[t];
      const W* w = static_cast<const W*>(a.panels) + id / kPanelWidth * a.k * kPanelWidth + id % kPanelWidth;
      float* out = a.out + t * a.out_stride;
      for (int64_t k = 0; k < a.k; ++k) out[k] = to_float(w[k * kPanelWidth]) * a.scale;
    }
  });
}

}  // namespace

void linear(const LinearArgs& a) {
  switch (a.dtype) {
    case DType::f32: return run<float>(a);
    case DType::bf16: return run<bf16>(a);
    case DType::f16: return run<f16>(a);
  }
}

void embed_rows(const EmbedArgs& a) {
  switch (a.dtype) {
    case DType::f32: return embed<float>(a);
    case DType::bf16: return embed<bf16>(a);
    case DType::f16: return embed<f16>(a);
  }
}

}  // namespace ZG_ISA
}  // namespace zg
