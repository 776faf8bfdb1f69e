// SPDX-License-Identifier: Apache-2.0
// Blocks of tokens that have become full go from their sequence's tail into the packed pool (attention/kivi.h).
#include "kernels/attention/kivi.h"
#include "kernels/parallel.h"

namespace zg {
namespace ZG_ISA {
namespace {

template <int kBits>
void pack_block(const char* tail, int64_t tail_part, char* packed, int64_t packed_part, int64_t d) {
  const float* keys = reinterpret_cast<const float*>(tail);
  const float* values = reinterpret_cast<const float*>(tail + tail_part);
  KiviRecord<kBits>* key_records = reinterpret_cast<KiviRecord<kBits>*>(packed);
  KiviRecord<kBits>* value_records = reinterpret_cast<KiviRecord<kBits>*>(packed + packed_part);
  for (int64_t c = 0; c < d; ++c) encode_record(keys + c * kKiviTokens, key_records + c);
  for (int64_t record = 0; record < d; ++record) encode_record(values + record * kKiviTokens, value_records + record);
}

template <int kBits>
void task(const PackArgs& a, int64_t index) {
  const int64_t s = index / a.kv.num_kv_heads, head = index % a.kv.num_kv_heads;
  const int64_t first = a.first_positions[s] / kKiviTokens;
  const int64_t last = (a.first_positions[s] + a.query_starts[s + 1] - a.query_starts[s]) / kKiviTokens;
  for (int64_t block = first; block < last; ++block) {
    const char* tail = a.tail.base + a.tail_tables[s * a.tail_stride + block] * a.tail.block_stride + head * a.tail.head_stride;
    char* packed = a.kv.base + a.block_tables[s * a.table_stride + block] * a.kv.block_stride + head * a.kv.head_stride;
    pack_block<kBits>(tail, a.tail.kv_stride, packed, a.kv.kv_stride, a.kv.head_dim);
  }
}

}  // namespace

void pack_kv(const PackArgs& a) {
  bool is_work = false;
  for (int64_t s = 0; s < a.num_seqs; ++s)
    is_work = is_work || (a.first_positions[s] % kKiviTokens + a.query_starts[s + 1] - a.query_starts[s]) >= kKiviTokens;
  if (!is_work) return;  // most decode steps
  const int64_t num_tasks = a.num_seqs * a.kv.num_kv_heads;
  if (a.kv.format == KVFormat::kivi4) return for_tasks(num_tasks, [&](int64_t i) { task<4>(a, i); });
  return for_tasks(num_tasks, [&](int64_t i) { task<2>(a, i); });
}

}  // namespace ZG_ISA
}  // namespace zg
