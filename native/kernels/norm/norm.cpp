// SPDX-License-Identifier: Apache-2.0
// x += delta (optional), out = x / sqrt(mean(x^2) + eps) * (weight_offset + weight); and the plain residual addition.
#include "kernels/norm/norm.h"

#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

void rms_norm(const NormArgs& a) {
  for_rows(a.num_rows, a.k, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      float* x = a.x + t * a.x_stride;
      if (a.delta != nullptr) add_row(x, a.delta + t * a.delta_stride, a.k);
      norm_row(x, a.weight, a.out + t * a.out_stride, a.k, a.eps, a.weight_offset);
    }
  });
}

void add(const AddArgs& a) {
  for_rows(a.num_rows, a.k, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) add_row(a.x + t * a.x_stride, a.delta + t * a.delta_stride, a.k);
  });
}

}  // namespace ZG_ISA
}  // namespace zg
