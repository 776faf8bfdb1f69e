// SPDX-License-Identifier: Apache-2.0
// One row at a time; shared by the norm of whole rows and the norm of heads.
#pragma once
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

inline void add_row(float* x, const float* delta, int64_t k) {
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) store8(x + i, add8(load8(x + i), load8(delta + i)));
  for (; i < k; ++i) x[i] = x[i] + delta[i];
}

// Squares are summed in four vectors of eight lanes, then by a fixed tree: the order depends on k alone.
inline void norm_row(const float* x, const float* weight, float* out, int64_t k, float eps, float weight_offset) {
  vec8 sums[4] = {zero8(), zero8(), zero8(), zero8()};
  int64_t i = 0;
  for (; i + 32 <= k; i += 32)
    for (int j = 0; j < 4; ++j) {
      const vec8 v = load8(x + i + 8 * j);
      sums[j] = fma8(v, v, sums[j]);
    }
  for (; i < k; i += 8) {
    const vec8 v = k - i >= 8 ? load8(x + i) : load_some8(x + i, k - i);
    sums[0] = fma8(v, v, sums[0]);
  }
  const float total = sum8(add8(add8(sums[0], sums[1]), add8(sums[2], sums[3])));
  const float scale = 1.0f / sqrt1(total / static_cast<float>(k) + eps);
  for (i = 0; i + 8 <= k; i += 8)
    store8(out + i, mul8(mul8(load8(x + i), set8(scale)), add8(load8(weight + i), set8(weight_offset))));
  for (; i < k; ++i) out[i] = x[i] * scale * (weight[i] + weight_offset);
}

}  // namespace ZG_ISA
}  // namespace zg
