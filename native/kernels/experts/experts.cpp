// SPDX-License-Identifier: Apache-2.0
// Mixtures of experts: the choice of experts, one matrix per expert over the rows that chose it, and the weighted sum.
//
// Routed row r is token r / top_k with its choice r % top_k. The caller sorts routed rows by expert into index lists; a tile takes
// its rows through the list, so nothing is gathered, padded or copied, however ragged the experts are:
//
//   expert 0: rows 3 8 9 | expert 1: (none) | expert 2: rows 0 1 2 4 5 ..        x[rows[i] / x_divisor] -> out[rows[i]]
//
// The product is that of linear/tile.h: an expert's rows have the bits of a plain linear with its matrix.
#include "kernels/linear/tile.h"
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

// All rows of one expert times some of its panels.
template <typename W>
void expert_task(const GroupedArgs& a, int64_t expert, int64_t first, int64_t last) {
  const W* w = static_cast<const W*>(a.panels) + expert * (a.n / kPanelWidth) * a.k * kPanelWidth;
  const int32_t* rows = a.rows + a.row_starts[expert];
  product(
      w, a.k, a.row_starts[expert + 1] - a.row_starts[expert], first, last,
      [&](int64_t i) { return a.x + rows[i] / a.x_divisor * a.x_stride; },
      [&](int64_t i, int64_t column, vec8 sum) { store8(a.out + rows[i] * a.out_stride + column, sum); });
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
