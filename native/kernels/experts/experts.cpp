// SPDX-License-Identifier: Apache-2.0
// Mixtures of experts: the choice of experts, one matrix per expert over the rows that chose it, and the weighted sum.
//
// Routed row r is token r / top_k with its choice r % top_k. The caller sorts routed rows by expert into index lists; a tile takes
// its rows through the list, so nothing is gathered, padded or copied, however ragged the experts are:
//
//   expert 0: rows 3 8 9 | expert 1: (none) | expert 2: rows 0 1 2 4 5 ..        x[rows[i] / x_divisor] -> out[rows[i]]
//
// An element of the linear has one accumulator and one order, as in linear.cpp: k from 0 upwards, one fused multiply-add each.
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

constexpr int kMaxTileRows = 6;
constexpr int64_t kRowBlockBytes = 256 * 1024;  // activations that stay in the second-level cache while panels pass by

template <typename W, int kRows, int kPanels>
void tile(const GroupedArgs& a, const W* w, const int32_t* rows, int64_t column) {
  const int64_t panel_size = a.k * kPanelWidth;
  const float* x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = a.x + rows[r] / a.x_divisor * a.x_stride;
  vec8 sums[kRows][kPanels][2];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) sums[r][p][0] = sums[r][p][1] = zero8();
  constexpr int64_t kAhead = (kPanels == 1 ? 2048 : 512) / static_cast<int64_t>(sizeof(W));
  for (int64_t k = 0; k < a.k; ++k) {
    for (int p = 0; p < kPanels; ++p) {
      __builtin_prefetch(w + p * panel_size + k * kPanelWidth + kAhead);
      const vec8 left = load8(w + p * panel_size + k * kPanelWidth);
      const vec8 right = load8(w + p * panel_size + k * kPanelWidth + 8);
      for (int r = 0; r < kRows; ++r) {
        const vec8 value = set8(x[r][k]);
        sums[r][p][0] = fma8(value, left, sums[r][p][0]);
        sums[r][p][1] = fma8(value, right, sums[r][p][1]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p)
      for (int half = 0; half < 2; ++half)
        store8(a.out + rows[r] * a.out_stride + column + p * kPanelWidth + half * 8, sums[r][p][half]);
}

// Panels [first, last) of one expert for `kRows` rows, in groups of kPanels.
template <typename W, int kRows, int kPanels>
void sweep(const GroupedArgs& a, const W* w, const int32_t* rows, int64_t first, int64_t last) {
  const int64_t panel_size = a.k * kPanelWidth;
  int64_t panel = first;
  for (; panel + kPanels <= last; panel += kPanels) tile<W, kRows, kPanels>(a, w + panel * panel_size, rows, panel * kPanelWidth);
  for (; panel < last; ++panel) tile<W, kRows, 1>(a, w + panel * panel_size, rows, panel * kPanelWidth);
}

template <typename W>
void rows_by_panels(const GroupedArgs& a, const W* w, const int32_t* rows, int64_t num_rows, int64_t first, int64_t last) {
  switch (num_rows) {
    case 1: return sweep<W, 1, 4>(a, w, rows, first, last);
    case 2: return sweep<W, 2, 2>(a, w, rows, first, last);
    case 3: return sweep<W, 3, 2>(a, w, rows, first, last);
    case 4: return sweep<W, 4, 1>(a, w, rows, first, last);
    case 5: return sweep<W, 5, 1>(a, w, rows, first, last);
    default: return sweep<W, 6, 1>(a, w, rows, first, last);
  }
}

// The rows of one expert, dealt into tiles of nearly equal height, times some of its panels.
template <typename W>
void expert_task(const GroupedArgs& a, int64_t expert, int64_t first, int64_t last) {
  const W* w = static_cast<const W*>(a.panels) + expert * (a.n / kPanelWidth) * a.k * kPanelWidth;
  const int32_t* rows = a.rows + a.row_starts[expert];
  const int64_t num_rows = a.row_starts[expert + 1] - a.row_starts[expert];
  const int64_t num_tiles = (num_rows + kMaxTileRows - 1) / kMaxTileRows;
  if (num_tiles == 1) return rows_by_panels<W>(a, w, rows, num_rows, first, last);
  const int64_t block_tiles = most(1, kRowBlockBytes / (kMaxTileRows * a.k * 4));
  for (int64_t block = 0; block < num_tiles; block += block_tiles) {
    const int64_t block_end = least(num_tiles, block + block_tiles);
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t i = block; i < block_end; ++i) {
        const int64_t row = i * num_rows / num_tiles;
        rows_by_panels<W>(a, w, rows + row, (i + 1) * num_rows / num_tiles - row, panel, panel + 1);
      }
    }
  }
}

template <typename W>
void run(const GroupedArgs& a) {
  const int64_t num_panels = a.n / kPanelWidth;
  for_tasks(a.task_starts[a.num_experts], [&](int64_t task) {
    int64_t low = 0, high = a.num_experts - 1;  // the expert whose tasks hold this one
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (a.task_starts[middle] <= task) low = middle;
      else high = middle - 1;
    }
    const int64_t first = (task - a.task_starts[low]) * a.task_panels[low];
    expert_task<W>(a, low, first, least(num_panels, first + a.task_panels[low]));
  });
}

// Probabilities in place: the maximum, then exponentials and their sum in eight lanes; the order depends on the count alone.
void softmax_row(float* x, int64_t count) {
  vec8 best = set8(x[0]);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) best = max8(best, load8(x + i));
  float maximum = maximum8(best);
  for (; i < count; ++i) maximum = (x[i] > maximum || x[i] != x[i]) ? x[i] : maximum;
  vec8 total = zero8();
  for (i = 0; i < count; i += 8) {
    const int64_t lanes = least(8, count - i);
    const vec8 value = exp8(sub8(lanes == 8 ? load8(x + i) : load_some8(x + i, lanes), set8(maximum)));
    total = add8(total, keep8(value, 0, static_cast<int>(lanes), 0.0f));
    store_some8(x + i, value, lanes);
  }
  const float sum = sum8(total);
  for (i = 0; i < count; ++i) x[i] = x[i] / sum;
}

// The largest probabilities in turn; a taken one becomes -1. A row of NaN takes the first experts and keeps its NaN.
void choose(float* probabilities, const RouteArgs& a, float* out) {
  float sum = 0.0f;
  for (int64_t j = 0; j < a.top_k; ++j) {
    int64_t best = -1;
    for (int64_t e = 0; e < a.num_experts; ++e) {
      if (probabilities[e] == -1.0f) continue;
      if (best < 0 || probabilities[e] > probabilities[best]) best = e;
    }
    out[j] = static_cast<float>(best);
    out[a.top_k + j] = probabilities[best];
    sum += probabilities[best];
    probabilities[best] = -1.0f;
  }
  if (!a.is_normalized) return;
  for (int64_t j = 0; j < a.top_k; ++j) out[a.top_k + j] = out[a.top_k + j] / sum;
}

inline void combine_row(const CombineArgs& a, int64_t token) {
  const float* probability = a.routing + token * a.routing_stride + a.top_k;
  const float* x = a.x + token * a.top_k * a.x_stride;
  float* out = a.out + token * a.out_stride;
  for (int64_t i = 0; i < a.k; i += 8) {
    const int64_t lanes = least(8, a.k - i);
    vec8 sum = zero8();
    for (int64_t j = 0; j < a.top_k; ++j) {
      const float* row = x + j * a.x_stride + i;
      sum = fma8(set8(probability[j]), lanes == 8 ? load8(row) : load_some8(row, lanes), sum);
    }
    if (a.accumulate) sum = add8(sum, lanes == 8 ? load8(out + i) : load_some8(out + i, lanes));
    if (lanes == 8) store8(out + i, sum);
    else store_some8(out + i, sum, lanes);
  }
}

}  // namespace

void grouped_linear(const GroupedArgs& a) {
  switch (a.dtype) {
    case DType::f32: return run<float>(a);
    case DType::bf16: return run<bf16>(a);
    case DType::f16: return run<f16>(a);
  }
}

void route(const RouteArgs& a) {
  for_rows(a.num_rows, a.num_experts * (8 + a.top_k), [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      float* row = a.logits + t * a.logits_stride;
      softmax_row(row, a.num_experts);
      choose(row, a, a.out + t * a.out_stride);
    }
  });
}

void combine(const CombineArgs& a) {
  for_rows(a.num_rows, a.k * a.top_k, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) combine_row(a, t);
  });
}

}  // namespace ZG_ISA
}  // namespace zg
