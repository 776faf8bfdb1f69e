// SPDX-License-Identifier: Apache-2.0
// out = act(gate) * up on fused rows [gate | up], and the soft cap x = cap * tanh(x / cap). Tails go through the same vector code, padded with zeros.
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

inline vec8 silu(vec8 x) { return div8(x, add8(set8(1.0f), exp8(sub8(zero8(), x)))); }

// x / 2 * (1 + tanh(z)) = x * sigmoid(2 z), with z = sqrt(2 / pi) * (x + 0.044715 x^3)
inline vec8 gelu_tanh(vec8 x) {
  const vec8 inner = mul8(x, fma8(mul8(x, x), set8(0.044715f), set8(1.0f)));
  return div8(x, add8(set8(1.0f), exp8(mul8(inner, set8(-2.0f * 0.7978845608028654f)))));
}

template <vec8 (*act)(vec8)>
void rows(const GatedArgs& a) {
  for_rows(a.num_rows, a.f * 8, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const float* gate = a.gate_up + t * a.gate_up_stride;
      const float* up = gate + a.f;
      float* out = a.out + t * a.out_stride;
      int64_t i = 0;
      for (; i + 8 <= a.f; i += 8) store8(out + i, mul8(act(load8(gate + i)), load8(up + i)));
      const int64_t rest = a.f - i;
      if (rest > 0) store_some8(out + i, mul8(act(load_some8(gate + i, rest)), load_some8(up + i, rest)), rest);
    }
  });
}

}  // namespace

void soft_cap(const SoftCapArgs& a) {
  for_rows(a.num_rows, a.k * 8, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      float* x = a.x + t * a.x_stride;
      int64_t i = 0;
      for (; i + 8 <= a.k; i += 8) store8(x + i, soft_cap8(load8(x + i), a.cap));
      if (i < a.k) store_some8(x + i, soft_cap8(load_some8(x + i, a.k - i), a.cap), a.k - i);
    }
  });
}

void gated_activation(const GatedArgs& a) {
  switch (a.kind) {
    case Activation::silu: return rows<silu>(a);
    case Activation::gelu_tanh: return rows<gelu_tanh>(a);
  }
}

}  // namespace ZG_ISA
}  // namespace zg
