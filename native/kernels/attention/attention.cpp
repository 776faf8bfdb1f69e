// SPDX-License-Identifier: Apache-2.0
// Causal attention over a paged KV pool: one task per (sequence, tile of query positions, KV head).
//
// Keys are walked in tiles of 64 absolute positions, from the first tile that a row sees:
//
//   position   0 .. 63 | 64 .. 127 | 128 .. 191 | ..        row at position i sees [max(0, i - window + 1), i]
//   row i      [ tile  |   tile    |  tile lo..hi )          lo and hi are the visible span inside a tile
//
// Keys of plain formats lie with sixteen tokens side by side, [element][token] in every block, values row by row: where blocks are whole
// panels of sixteen tokens, both are multiplied where they lie. Others (quantized, packed, small blocks) are first widened to fp32 in that
// layout, once for all rows of a task. For each row and tile: scores (one chain of multiply-adds per key, over the head's elements from
// 0 upwards), maximum, exponentials, and the weighted sum of the values in the order of the keys; the running maximum, sum and output are
// rescaled as in online softmax (Milakov and Gimelshein, arXiv 1805.02867). Every step depends on the row's own position and numbers only:
// chunking, neighbours, the size of a KV block and the threads cannot change a bit. Values outside the span are never multiplied, and scores
// outside of it are hidden, so what lies in slots that were not written yet (or in a neighbour's poisoned row) cannot leak in.
//
// A sequence's tasks are not split along the keys: a long lone decode uses as many threads as there are KV heads.
#include <cstddef>

#include "kernels/attention/entries.h"
#include "kernels/attention/kivi.h"
#include "kernels/attention/rows.h"
#include "kernels/attention/transpose.h"
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

template <typename T>
void locate(const AttentionArgs& a, const int32_t* table, int64_t kv_head, int64_t tile_start, Tile<T>& tile) {
  const KVArgs& kv = a.kv;
  const int64_t first = tile_start + tile.first;
  int64_t block = first / kv.block_size, slot = first % kv.block_size;
  const char* head = kv.base + kv_head * kv.head_stride;
  const T* entries = reinterpret_cast<const T*>(head + table[block] * kv.block_stride);
  const int64_t entry = kv.head_dim / kEntryValues<T>;
  for (int j = tile.first; j < tile.last; ++j) {
    tile.keys[j] = entries + slot * entry;
    tile.values[j] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(tile.keys[j]) + kv.kv_stride);
    if (++slot == kv.block_size && j + 1 < tile.last) {
      slot = 0;
      entries = reinterpret_cast<const T*>(head + table[++block] * kv.block_stride);
    }
  }
  for (int j = 0; j < tile.first; ++j) tile.keys[j] = tile.keys[tile.first], tile.values[j] = tile.values[tile.first];
  for (int j = tile.last; j < kKVTile; ++j) tile.keys[j] = tile.keys[tile.last - 1], tile.values[j] = tile.values[tile.last - 1];
}

// Sixteen rows are decoded side by side first.
template <typename T>
void key_panel(const T* const* keys, int64_t d, Scratch& scratch, float* panel) {
  const float* rows[kPanelWidth];
  for (int j = 0; j < kPanelWidth; ++j) {
    rows[j] = scratch.decoded + j * d;
    expand_entry(keys[j], d, scratch.decoded + j * d);
  }
  panel_of_rows<float>(rows, d, panel);
}
template <typename T>
void widen(const Tile<T>& tile, int64_t d, Scratch& scratch) {
  const int64_t stride = value_stride(d);
  for (int panel = tile.first / kPanelWidth; panel * kPanelWidth < tile.last; ++panel)
    key_panel(tile.keys + panel * kPanelWidth, d, scratch, scratch.keys + panel * kPanelWidth * d);
  for (int j = tile.first; j < tile.last; ++j) {
    float* value = scratch.values + j * stride;
    expand_entry(tile.values[j], d, value);
    if (d < stride) store8(value + d, zero8());
  }
}

// Blocks of a sequence lie anywhere, so the hardware cannot guess which comes next; the block table can tell.
template <typename T>
void fetch(const Tile<T>& tile, int64_t d) {
  const int64_t entry_bytes = d / kEntryValues<T> * static_cast<int64_t>(sizeof(T));
  for (int j = tile.first; j < tile.last; ++j) {
    for (int64_t i = 0; i < entry_bytes; i += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(tile.keys[j]) + i, 0, 2);
      __builtin_prefetch(reinterpret_cast<const char*>(tile.values[j]) + i, 0, 2);
    }
  }
}

void begin_rows(Rows& rows, int64_t d) {
  for (int r = 0; r < rows.count; ++r) {
    rows.maximum[r] = -__builtin_inff(), rows.sum[r] = 0.0f;
    for (int64_t i = 0; i < d; i += 8) store8(rows.out[r] + i, zero8());
  }
}

void finish_rows(Rows& rows, int64_t d) {
  for (int r = 0; r < rows.count; ++r) {
    const vec8 factor = set8(1.0f / rows.sum[r]);
    for (int64_t i = 0; i < d; i += 8) store8(rows.out[r] + i, mul8(load8(rows.out[r] + i), factor));
  }
}

View<float> view_of(const Scratch& scratch, int64_t d) {
  View<float> view{{{}, kPanelWidth}, {}, value_stride(d)};
  for (int panel = 0; panel < kPanelsPerTile; ++panel) {
    view.keys.panels[panel] = scratch.keys + panel * kPanelWidth * d;
    view.values[panel] = scratch.values + panel * kPanelWidth * value_stride(d);
  }
  return view;
}

// Plain numbers in blocks of any size: token by token.
template <typename T>
void gather(const AttentionArgs& a, const int32_t* table, int64_t kv_head, int64_t start, int first, int last, Scratch& scratch) {
  const KVArgs& kv = a.kv;
  const int64_t d = kv.head_dim, stride = value_stride(d);
  for (int j = first; j < last; ++j) {
    const int64_t slot = (start + j) % kv.block_size;
    const char* head = kv.base + table[(start + j) / kv.block_size] * kv.block_stride + kv_head * kv.head_stride;
    const T *keys = reinterpret_cast<const T*>(head), *values = reinterpret_cast<const T*>(head + kv.kv_stride);
    float* panel = scratch.keys + j / kPanelWidth * kPanelWidth * d + j % kPanelWidth;
    for (int64_t i = 0; i < d; ++i) panel[i * kPanelWidth] = to_float(keys[i * kv.block_size + slot]);
    expand_entry(values + slot * d, d, scratch.values + j * stride);
    if (d < stride) store8(scratch.values + j * stride + d, zero8());
  }
}

// Where the panels of a tile lie; those that no row sees point at one that some row sees.
template <typename T>
void locate_panels(const AttentionArgs& a, const int32_t* table, int64_t kv_head, int64_t start, int first, int last, View<T>& view) {
  const KVArgs& kv = a.kv;
  const int first_panel = first / kPanelWidth, last_panel = (last - 1) / kPanelWidth;
  for (int panel = 0; panel < kPanelsPerTile; ++panel) {
    const int64_t token = start + (panel < first_panel ? first_panel : panel > last_panel ? last_panel : panel) * kPanelWidth;
    const int64_t slot = token % kv.block_size;
    const char* head = kv.base + table[token / kv.block_size] * kv.block_stride + kv_head * kv.head_stride;
    view.keys.panels[panel] = reinterpret_cast<const T*>(head) + slot;
    view.values[panel] = reinterpret_cast<const T*>(head + kv.kv_stride) + slot * kv.head_dim;
  }
}

// Blocks lie anywhere, so the hardware cannot guess which comes next.
template <typename T>
void fetch_panels(const View<T>& view, int first, int last, int64_t d) {
  const int64_t row_bytes = kPanelWidth * static_cast<int64_t>(sizeof(T)), value_bytes = kPanelWidth * d * static_cast<int64_t>(sizeof(T));
  for (int panel = first / kPanelWidth; panel * kPanelWidth < last; ++panel) {
    for (int64_t i = 0; i < d; i += row_bytes < 64 ? 64 / row_bytes : 1) __builtin_prefetch(view.keys.panels[panel] + i * view.keys.stride, 0, 2);
    for (int64_t i = 0; i < value_bytes; i += 64) __builtin_prefetch(reinterpret_cast<const char*>(view.values[panel]) + i, 0, 2);
  }
}

// Formats of plain numbers.
template <typename T>
void walk_plain(const AttentionArgs& a, Rows& rows, int64_t sequence, int64_t kv_head) {
  const int32_t* table = a.block_tables + sequence * a.table_stride;
  const int64_t d = a.kv.head_dim, lowest = rows.position[0], highest = rows.position[rows.count - 1];
  begin_rows(rows, d);
  const int64_t begin = a.window > 0 ? most(0, lowest - a.window + 1) : 0;
  const auto first_at = [&](int64_t start) { return static_cast<int>(most(0, begin - start)); };
  const auto last_at = [&](int64_t start) { return static_cast<int>(least(kKVTile, highest + 1 - start)); };
  const int64_t first_tile = begin / kKVTile * kKVTile;
  if (a.kv.block_size % kPanelWidth || d % kPanelWidth) {
    static thread_local Scratch scratch;
    const View<float> view = view_of(scratch, d);
    for (int64_t start = first_tile; start <= highest; start += kKVTile) {
      gather<T>(a, table, kv_head, start, first_at(start), last_at(start), scratch);
      attend_rows(a, rows, view, start);
    }
  } else {
    View<T> view{{{}, a.kv.block_size}, {}, d}, next = view;
    locate_panels<T>(a, table, kv_head, first_tile, first_at(first_tile), last_at(first_tile), next);
    for (int64_t start = first_tile; start <= highest; start += kKVTile) {
      view = next;
      const int64_t after = start + kKVTile;
      if (after <= highest) {
        locate_panels<T>(a, table, kv_head, after, first_at(after), last_at(after), next);
        fetch_panels(next, first_at(after), last_at(after), d);
      }
      attend_rows(a, rows, view, start);
    }
  }
  finish_rows(rows, d);
}

template <typename T>
void walk(const AttentionArgs& a, Rows& rows, int64_t sequence, int64_t kv_head) {
  const int32_t* table = a.block_tables + sequence * a.table_stride;
  const int64_t d = a.kv.head_dim, lowest = rows.position[0], highest = rows.position[rows.count - 1];
  begin_rows(rows, d);
  const int64_t begin = a.window > 0 ? most(0, lowest - a.window + 1) : 0;
  const auto tile_at = [&](int64_t start, Tile<T>& tile) {
    tile.first = static_cast<int>(most(0, begin - start)), tile.last = static_cast<int>(least(kKVTile, highest + 1 - start));
    locate<T>(a, table, kv_head, start, tile);
    fetch<T>(tile, d);
  };
  static thread_local Scratch scratch;
  const View<float> view = view_of(scratch, d);
  Tile<T> tile, next;
  const int64_t first_tile = begin / kKVTile * kKVTile;
  tile_at(first_tile, next);
  for (int64_t start = first_tile; start <= highest; start += kKVTile) {
    tile = next;
    if (start + kKVTile <= highest) tile_at(start + kKVTile, next);
    widen<T>(tile, d, scratch);
    attend_rows(a, rows, view, start);
  }
  finish_rows(rows, d);
}

// 32 packed tokens, of which the keys become two panels.
template <int kBits>
void widen_packed(const char* head, int64_t part_bytes, int64_t d, float* panels, float* values) {
  const auto* keys = reinterpret_cast<const KiviRecord<kBits>*>(head);
  const auto* records = reinterpret_cast<const KiviRecord<kBits>*>(head + part_bytes);
  for (int64_t c = 0; c < d; ++c) decode_record(keys + c, panels + c * kPanelWidth, panels + (d + c) * kPanelWidth);
  for (int64_t record = 0; record < d; ++record) {
    float* out = values + record * kKiviTokens;
    decode_record(records + record, out, out + kPanelWidth);
  }
}

// The first `count` tokens of a tail block.
void widen_tail(const char* head, int64_t part_bytes, int64_t d, int count, float* panels, float* values) {
  const float* keys = reinterpret_cast<const float*>(head);
  for (int64_t c = 0; c < d; ++c) {
    store16(panels + c * kPanelWidth, load16(keys + c * kKiviTokens));
    store16(panels + (d + c) * kPanelWidth, load16(keys + c * kKiviTokens + kPanelWidth));
  }
  __builtin_memcpy(values, head + part_bytes, static_cast<std::size_t>(count * d) * sizeof(float));
}

// All rows stand in one block of 32 positions, which they see in plain numbers; what is before it is packed.
template <int kBits>
void walk_packed(const AttentionArgs& a, Rows& rows, int64_t sequence, int64_t kv_head) {
  const int32_t* table = a.block_tables + sequence * a.table_stride;
  const int32_t* tails = a.tail_tables + sequence * a.tail_stride;
  const int64_t d = a.kv.head_dim, highest = rows.position[rows.count - 1], own = highest / kKiviTokens;
  begin_rows(rows, d);
  static thread_local Scratch scratch;
  const View<float> view = view_of(scratch, d);
  const auto head_of = [&](const KVArgs& kv, int64_t block) { return kv.base + block * kv.block_stride + kv_head * kv.head_stride; };
  for (int64_t start = 0; start <= highest; start += kKVTile) {
    for (int half = 0; half < kKVTile / kKiviTokens; ++half) {
      const int64_t block = start / kKiviTokens + half;
      float* panels = scratch.keys + half * kKiviTokens * d;
      float* values = scratch.values + half * kKiviTokens * d;
      if (block < own) widen_packed<kBits>(head_of(a.kv, table[block]), a.kv.kv_stride, d, panels, values);
      if (block == own) widen_tail(head_of(a.tail, tails[block]), a.tail.kv_stride, d, static_cast<int>(highest % kKiviTokens) + 1, panels, values);
      if (block + 2 < own)
        for (int64_t i = 0; i < 2 * a.kv.kv_stride / a.kv.num_kv_heads; i += 64) __builtin_prefetch(head_of(a.kv, table[block + 2]) + i, 0, 2);
    }
    attend_rows(a, rows, view, start);
  }
  finish_rows(rows, d);
}

template <typename Walk>
void task(const AttentionArgs& a, int64_t index, int64_t span, const Walk& walk) {
  int64_t low = 0, high = a.num_seqs - 1;  // the sequence whose tasks hold the index
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (a.task_starts[middle] <= index) low = middle;
    else high = middle - 1;
  }
  const int64_t heads = a.num_heads / a.kv.num_kv_heads, d = a.kv.head_dim;
  const int64_t kv_head = (index - a.task_starts[low]) % a.kv.num_kv_heads;
  const int64_t tile = (index - a.task_starts[low]) / a.kv.num_kv_heads;
  const int64_t first = a.query_starts[low] + tile * a.tile_rows;
  const int64_t last = least(a.query_starts[low + 1], first + a.tile_rows);
  Rows rows;
  rows.count = 0;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t head = kv_head * heads; head < (kv_head + 1) * heads; ++head) {
      rows.q[rows.count] = a.q + row * a.q_stride + head * d;
      rows.out[rows.count] = a.out + row * a.out_stride + head * d;
      rows.position[rows.count++] = a.first_positions[low] + row - a.query_starts[low];
      const bool is_row_end = head + 1 == (kv_head + 1) * heads;
      const bool is_span_end = is_row_end && span > 0 && (rows.position[rows.count - 1] + 1) % span == 0;
      if (rows.count == kAttentionRows || is_span_end || (is_row_end && row + 1 == last)) {
        walk(a, rows, low, kv_head);
        rows.count = 0;
      }
    }
  }
}

}  // namespace

void paged_attention(const AttentionArgs& a) {
  const auto run = [&](const auto& walk, int64_t span) {
    for_tasks(a.task_starts[a.num_seqs], [&](int64_t i) { task(a, i, span, walk); });
  };
  switch (a.kv.format) {
    case KVFormat::f32: return run(walk_plain<float>, 0);
    case KVFormat::bf16: return run(walk_plain<bf16>, 0);
    case KVFormat::f16: return run(walk_plain<f16>, 0);
    case KVFormat::q8_0: return run(walk<KVQ8>, 0);
    case KVFormat::q4_0: return run(walk<KVQ4>, 0);
    case KVFormat::kivi4: return run(walk_packed<4>, kKiviTokens);
    case KVFormat::kivi2: return run(walk_packed<2>, kKiviTokens);
  }
}

}  // namespace ZG_ISA
}  // namespace zg
