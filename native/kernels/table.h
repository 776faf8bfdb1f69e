// SPDX-License-Identifier: Apache-2.0
// The kernels as a table of functions, one table per instruction set.
//
// Everything below is plain data: addresses and sizes. Strides of fp32 rows are in elements, strides of the KV pool in bytes.
// Shape letters: T rows, K inner and N outer size of a linear, D head size, Hq and Hkv heads, S sequences.
#pragma once
#include <cstdint>

namespace zg {

constexpr int kPanelWidth = 16;  // rows of a weight matrix that lie interleaved: [ceil(N / 16)][K][16]
constexpr int kKVTile = 64;      // attention walks the KV in tiles of this many absolute positions
constexpr int kAttentionRows = 96;  // rows (positions x heads of a group) that share one walk over the keys

constexpr int kGroup = 32;  // values along K that share a scale, of quantized weights and of the activations they meet
constexpr int kGroupScratchBytes = 40;  // a group of quantized activations: 32 bytes, scale, sum (qlinear/dots.h)

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };
enum class KVFormat : int { f32 = 0, bf16 = 1, f16 = 2, q8_0 = 3, q4_0 = 4, kivi4 = 5, kivi2 = 6 };
enum class Block : int { q8_0 = 3, q4_0 = 4 };  // numbers go on from DType's: a caller has one list of codes
enum class Activation : int { silu = 0, gelu_tanh = 1 };

struct LinearArgs {
  const float* x;       // [T, K]
  int64_t x_stride;
  const void* panels;   // [P][K][16]
  DType dtype;
  const float* bias;    // [N] or null
  float* out;           // [T, N]
  int64_t out_stride;
  int64_t num_rows, k, n;
  bool accumulate;
};

struct QuantizedArgs {
  const float* x;      // [T, K], K a multiple of kGroup
  int64_t x_stride;
  const void* panels;  // [P][K / 32] records of sixteen rows (qlinear/dots.h)
  Block block;
  const float* bias;   // [N] or null
  float* out;          // [T, N]
  int64_t out_stride;
  int64_t num_rows, k, n;
  bool accumulate;
  void* scratch;       // T * K / 32 * kGroupScratchBytes bytes, 4-aligned: the quantized activations
};

struct EmbedArgs {
  const int64_t* ids;  // [T]
  const void* panels;
  DType dtype;
  float* out;  // [T, K]
  int64_t out_stride;
  int64_t num_rows, k;
  float scale;
};

struct QuantizedEmbedArgs {
  const int64_t* ids;  // [T]
  const void* panels;
  Block block;
  float* out;  // [T, K]
  int64_t out_stride;
  int64_t num_rows, k;
  float scale;
};

struct NormArgs {
  float* x;  // [T, K]
  int64_t x_stride;
  const float* delta;  // [T, K] or null
  int64_t delta_stride;
  const float* weight;  // [K]
  float* out;           // [T, K]
  int64_t out_stride;
  int64_t num_rows, k;
  float eps, weight_offset;
};

// Address of an entry: base + block * block_stride + kv * kv_stride + head * head_stride + slot * bytes of an entry.
struct KVArgs {
  char* base;  // pool plus the layer's offset
  KVFormat format;
  int64_t block_size, num_kv_heads, head_dim;
  int64_t block_stride, kv_stride, head_stride;
};

struct QKVArgs {
  float* qkv;  // [T, (Hq + 2 Hkv) * D]
  int64_t qkv_stride;
  const int64_t* positions;     // [T]
  const int64_t* slot_mapping;  // [T], -1 writes nothing
  const float* cos;             // [max_pos, rot / 2]
  const float* sin;
  int64_t num_rows, num_heads, rot_dim;
  const float* q_norm;  // [D] or null
  const float* k_norm;
  float eps, weight_offset;
  KVArgs kv;
};

struct AttentionArgs {
  const float* q;  // [T, >= Hq * D]
  int64_t q_stride;
  float* out;  // [T, Hq * D]
  int64_t out_stride;
  const int32_t* query_starts;     // [S + 1]
  const int32_t* first_positions;  // [S]
  const int32_t* block_tables;     // [S, B]
  int64_t table_stride;
  const int64_t* task_starts;  // [S + 1]: tasks of sequence s are [task_starts[s], task_starts[s + 1])
  int64_t num_seqs, num_heads;
  int64_t tile_rows;  // query positions per task
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
  KVArgs kv;
  KVArgs tail{};  // kivi: the blocks that are not full yet, plain fp32
  const int32_t* tail_tables = nullptr;  // [S, B]
  int64_t tail_stride = 0;
};

// Packs every block that a step filled.
struct PackArgs {
  const int32_t* query_starts;     // [S + 1]
  const int32_t* first_positions;  // [S]
  const int32_t* block_tables;     // [S, B]
  int64_t table_stride;
  const int32_t* tail_tables;  // [S, B]
  int64_t tail_stride;
  int64_t num_seqs;
  KVArgs kv, tail;
};

struct GatedArgs {
  const float* gate_up;  // [T, 2 F]
  int64_t gate_up_stride;
  float* out;  // [T, F]
  int64_t out_stride;
  int64_t num_rows, f;
  Activation kind;
};

struct AddArgs {
  float* x;
  int64_t x_stride;
  const float* delta;
  int64_t delta_stride;
  int64_t num_rows, k;
};

struct SoftCapArgs {
  float* x;  // [T, K]
  int64_t x_stride;
  int64_t num_rows, k;
  float cap;
};

struct RouteArgs {
  float* logits;  // [T, E], used up
  int64_t logits_stride;
  float* out;  // [T, 2 top_k]: expert numbers, then probabilities
  int64_t out_stride;
  int64_t num_rows, num_experts, top_k;
  bool is_normalized;
};

struct GroupedArgs {
  const float* x;  // row r of the output reads row r / x_divisor
  int64_t x_stride;
  int64_t x_divisor;
  const void* panels;  // [E][N / 16][K][16]
  DType dtype;
  float* out;  // [R, N]
  int64_t out_stride;
  int64_t num_experts, k, n;   // n: outputs of one expert, a multiple of 16
  const int32_t* rows;         // [R] output rows, sorted by expert
  const int32_t* row_starts;   // [E + 1]: rows of expert e are rows[row_starts[e]] .. rows[row_starts[e + 1] - 1]
  const int32_t* task_starts;  // [E + 1]: tasks of expert e are [task_starts[e], task_starts[e + 1])
  const int32_t* task_panels;  // [E]: panels per task
};

struct CombineArgs {
  const float* x;  // [T * top_k, K]
  int64_t x_stride;
  const float* routing;  // [T, 2 top_k]
  int64_t routing_stride;
  float* out;  // [T, K]
  int64_t out_stride;
  int64_t num_rows, k, top_k;
  bool accumulate;
};

constexpr int64_t kMaxLoraRank = 512;
constexpr int64_t kLoraRowsPerTask = 4;

struct LoraEntry {
  int64_t first_row, num_rows;
  const void* a;  // [rank][K], or shards of K / a_shards each
  const void* b;  // [rank][n], or shards of n / b_shards each
  int64_t rank, column, n;  // n and all shards multiples of 8
  DType dtype;
  float scale;
  const int32_t *a_index, *b_index;  // null, or [rank][shards]: which shards a row is made of
  int64_t a_shards, b_shards;  // per row; 1 without an index
};

struct LoraArgs {
  const float* x;  // [T, K], K a multiple of 8
  int64_t x_stride;
  float* out;  // [T, N], added to
  int64_t out_stride;
  int64_t k;
  const LoraEntry* entries;
  const int64_t* task_starts;  // [E + 1]: tasks of entry e are [task_starts[e], task_starts[e + 1])
  int64_t num_entries;
};

struct KernelTable {
  const char* isa;
  void (*linear)(const LinearArgs&);
  void (*embed_rows)(const EmbedArgs&);
  void (*quantized_linear)(const QuantizedArgs&);
  void (*quantized_embed)(const QuantizedEmbedArgs&);
  void (*rms_norm)(const NormArgs&);
  void (*qkv_post)(const QKVArgs&);
  void (*paged_attention)(const AttentionArgs&);
  void (*gated_activation)(const GatedArgs&);
  void (*add)(const AddArgs&);
  void (*soft_cap)(const SoftCapArgs&);
  void (*route)(const RouteArgs&);
  void (*grouped_linear)(const GroupedArgs&);
  void (*combine)(const CombineArgs&);
  void (*lora)(const LoraArgs&);
  void (*pack_kv)(const PackArgs&);
};

}  // namespace zg
