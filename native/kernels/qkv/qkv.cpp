// SPDX-License-Identifier: Apache-2.0
// What happens between the fused projection and attention, row by row:
//
//   [ q heads | k heads | v heads ]   norm per head (q, k; optional), rotate (q, k), write k and v into their slot
#include "kernels/attention/entries.h"
#include "kernels/norm/norm.h"
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

// Hugging Face's rotate_half: (a, b) -> (a cos - b sin, b cos + a sin) for element i and i + half.
void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + 8 <= half; i += 8) {
    const vec8 a = load8(x + i), b = load8(x + half + i), c = load8(cos + i), s = load8(sin + i);
    store8(x + i, sub8(mul8(a, c), mul8(b, s)));
    store8(x + half + i, add8(mul8(b, c), mul8(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}

// Plain numbers: tokens of a block side by side in the keys, so that attention multiplies them where they lie; values row by row.
template <typename T>
void write_plain(const QKVArgs& a, const float* k, int64_t slot) {
  const KVArgs& kv = a.kv;
  const int64_t d = kv.head_dim, in_block = slot % kv.block_size;
  const float* v = k + kv.num_kv_heads * d;
  char* block = kv.base + slot / kv.block_size * kv.block_stride;
  for (int64_t head = 0; head < kv.num_kv_heads; ++head, block += kv.head_stride) {
    T* keys = reinterpret_cast<T*>(block) + in_block;
    for (int64_t i = 0; i < d; ++i) store1(keys + i * kv.block_size, k[head * d + i]);
    write_entry(reinterpret_cast<T*>(block + kv.kv_stride) + in_block * d, v + head * d, d);
  }
}

template <typename T>
void write_kv(const QKVArgs& a, const float* k, int64_t slot) {
  const KVArgs& kv = a.kv;
  const int64_t d = kv.head_dim, entry_bytes = d / kEntryValues<T> * static_cast<int64_t>(sizeof(T));
  const float* v = k + kv.num_kv_heads * d;
  char* base = kv.base + slot / kv.block_size * kv.block_stride + slot % kv.block_size * entry_bytes;
  for (int64_t head = 0; head < kv.num_kv_heads; ++head) {
    for (int part = 0; part < 2; ++part) {
      char* to = base + part * kv.kv_stride + head * kv.head_stride;
      write_entry(reinterpret_cast<T*>(to), (part == 0 ? k : v) + head * d, d);
    }
  }
}

void write_kv(const QKVArgs& a, const float* k, int64_t slot) {
  switch (a.kv.format) {
    case KVFormat::f32: return write_plain<float>(a, k, slot);
    case KVFormat::bf16: return write_plain<bf16>(a, k, slot);
    case KVFormat::f16: return write_plain<f16>(a, k, slot);
    case KVFormat::q8_0: return write_kv<KVQ8>(a, k, slot);
    case KVFormat::q4_0: return write_kv<KVQ4>(a, k, slot);
    case KVFormat::kivi4:
    case KVFormat::kivi2: return;  // written into tails, packed by pack_kv
  }
}

void row(const QKVArgs& a, int64_t t) {
  const int64_t d = a.kv.head_dim, half = a.rot_dim / 2;
  float* qkv = a.qkv + t * a.qkv_stride;
  const float* cos = a.cos + a.positions[t] * half;
  const float* sin = a.sin + a.positions[t] * half;
  for (int64_t head = 0; head < a.num_heads + a.kv.num_kv_heads; ++head) {
    float* x = qkv + head * d;
    const float* weight = head < a.num_heads ? a.q_norm : a.k_norm;
    if (weight != nullptr) norm_row(x, weight, x, d, a.eps, a.weight_offset);
    rotate(x, cos, sin, half);
  }
  if (a.slot_mapping[t] >= 0) write_kv(a, qkv + a.num_heads * d, a.slot_mapping[t]);
}

}  // namespace

void qkv_post(const QKVArgs& a) {
  const int64_t cost = (a.num_heads + 2 * a.kv.num_kv_heads) * a.kv.head_dim * 2;
  for_rows(a.num_rows, cost, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) row(a, t);
  });
}

}  // namespace ZG_ISA
}  // namespace zg
