// SPDX-License-Identifier: Apache-2.0
// Causal attention over a paged KV pool: one task per (sequence, tile of query positions, KV head).
//
// Keys are walked in tiles of 64 absolute positions, from the first tile that a row sees:
//
//   position   0 .. 63 | 64 .. 127 | 128 .. 191 | ..        row at position i sees [max(0, i - window + 1), i]
//   row i      [ tile  |   tile    |  tile lo..hi )          lo and hi are the visible span inside a tile
//
// For each row and tile: scores (one chain of eight lanes per key, then a fixed tree), maximum, exponentials, and the weighted sum
// of the values in the order of the keys; the running maximum, sum and output are rescaled as in online softmax (Milakov and
// Gimelshein, arXiv 1805.02867). Every step depends on the row's own position and numbers only: chunking, neighbours, the size of
// a KV block and the threads cannot change a bit. Keys outside the span are never multiplied, so what lies in slots that were not
// written yet (or in a neighbour's poisoned row) cannot leak in.
//
// A sequence's tasks are not split along the keys: a long lone decode uses as many threads as there are KV heads.
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

constexpr int kMaxRows = 32;    // rows (positions x heads of a group) that share one walk over the keys
constexpr int kDirectRows = 8;  // up to here keys are widened on the fly; above, a tile is widened once into scratch
constexpr int kMaxHeadDim = 256;

struct Span {
  int first, last;  // [first, last) inside a tile
};

struct Rows {
  const float* q[kMaxRows];
  float* out[kMaxRows];
  int64_t position[kMaxRows];
  float maximum[kMaxRows], sum[kMaxRows];
  int count;
};

// The keys and values of one tile; entries outside [first, last) point at some entry inside it.
template <typename T>
struct Tile {
  const T* keys[kKVTile];
  const T* values[kKVTile];
  int first, last;
};

template <typename T, int kRows, int kKeys>
inline void score_keys(const float* const* q, const T* const* keys, int64_t d, vec8 parts[][8], int at) {
  vec8 sums[kRows][kKeys];
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kKeys; ++j) sums[r][j] = zero8();
  for (int64_t i = 0; i < d; i += 8) {
    vec8 query[kRows];
    for (int r = 0; r < kRows; ++r) query[r] = load8(q[r] + i);
    for (int j = 0; j < kKeys; ++j) {
      const vec8 key = load8(keys[j] + i);
      for (int r = 0; r < kRows; ++r) sums[r][j] = fma8(query[r], key, sums[r][j]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kKeys; ++j) parts[r][at + j] = sums[r][j];
}

// scores[r][j] = scale * q[r] . key[j] inside the span, minus infinity in the rest of its groups of eight.
template <typename T, int kRows>
void score(const float* const* q, const Tile<T>& tile, Span span, int64_t d, float scale, float scores[][kKVTile]) {
  constexpr int kKeys = kRows == 1 ? 8 : 4;  // eight chains either way
  for (int group = span.first / 8 * 8; group < span.last; group += 8) {
    vec8 parts[kRows][8];
    for (int at = 0; at < 8; at += kKeys) score_keys<T, kRows, kKeys>(q, tile.keys + group + at, d, parts, at);
    for (int r = 0; r < kRows; ++r) {
      const vec8 value = mul8(sums8(parts[r]), set8(scale));
      store8(scores[r] + group, keep8(value, span.first - group, span.last - group, -__builtin_inff()));
    }
  }
}

// score = softcap * tanh(score / softcap) inside the span; what lies outside of it stays minus infinity.
void cap(float* scores, Span span, float softcap) {
  for (int group = span.first / 8 * 8; group < span.last; group += 8)
    store8(scores + group,
           keep8(soft_cap8(load8(scores + group), softcap), span.first - group, span.last - group, -__builtin_inff()));
}

// Turns scores into weights, moves the row's maximum and sum on, and returns the factor of what was gathered so far.
float soften(float* scores, Span span, float& maximum, float& sum) {
  const int begin = span.first / 8 * 8;
  vec8 best = set8(maximum);
  for (int group = begin; group < span.last; group += 8) best = max8(best, load8(scores + group));
  const float new_maximum = maximum8(best);
  vec8 total = zero8();
  for (int group = begin; group < span.last; group += 8) {
    const vec8 weight = exp8(sub8(load8(scores + group), set8(new_maximum)));
    store8(scores + group, weight);
    total = add8(total, weight);
  }
  float factors[8];
  store8(factors, exp8(set8(maximum - new_maximum)));
  sum = fma1(sum, factors[0], sum8(total));
  maximum = new_maximum;
  return factors[0];
}

template <typename T, int kRows, int kVecs>
inline void gather(float* const* out, const Tile<T>& tile, Span span, const float scores[][kKVTile], const float* factors, int64_t at) {
  vec8 sums[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVecs; ++c) sums[r][c] = mul8(load8(out[r] + at + 8 * c), set8(factors[r]));
  for (int j = span.first; j < span.last; ++j) {
    vec8 weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = set8(scores[r][j]);
    for (int c = 0; c < kVecs; ++c) {
      const vec8 value = load8(tile.values[j] + at + 8 * c);
      for (int r = 0; r < kRows; ++r) sums[r][c] = fma8(weight[r], value, sums[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kVecs; ++c) store8(out[r] + at + 8 * c, sums[r][c]);
}

template <typename T, int kRows>
void attend(const AttentionArgs& a, Rows& rows, int first_row, const Tile<T>& tile, Span span) {
  const int64_t d = a.kv.head_dim;
  alignas(32) float scores[kRows][kKVTile];
  float factors[kRows];
  score<T, kRows>(rows.q + first_row, tile, span, d, a.scale, scores);
  if (a.softcap > 0.0f)
    for (int r = 0; r < kRows; ++r) cap(scores[r], span, a.softcap);
  for (int r = 0; r < kRows; ++r)
    factors[r] = soften(scores[r], span, rows.maximum[first_row + r], rows.sum[first_row + r]);
  constexpr int kVecs = 8 / kRows;
  int64_t at = 0;
  for (; at + 8 * kVecs <= d; at += 8 * kVecs) gather<T, kRows, kVecs>(rows.out + first_row, tile, span, scores, factors, at);
  for (; at < d; at += 8) gather<T, kRows, 1>(rows.out + first_row, tile, span, scores, factors, at);
}

inline Span visible(const AttentionArgs& a, int64_t position, int64_t tile_start) {
  const int64_t begin = a.window > 0 ? most(0, position - a.window + 1) : 0;
  return {static_cast<int>(most(0, begin - tile_start)), static_cast<int>(least(kKVTile, position + 1 - tile_start))};
}

// Two rows with the same span share the loads of keys and values; their arithmetic is that of one row.
template <typename T>
void attend_rows(const AttentionArgs& a, Rows& rows, const Tile<T>& tile, int64_t tile_start) {
  for (int r = 0; r < rows.count;) {
    const Span span = visible(a, rows.position[r], tile_start);
    if (span.first >= span.last) {
      ++r;
      continue;
    }
    if (r + 1 < rows.count) {
      const Span next = visible(a, rows.position[r + 1], tile_start);
      if (next.first == span.first && next.last == span.last) {
        attend<T, 2>(a, rows, r, tile, span);
        r += 2;
        continue;
      }
    }
    attend<T, 1>(a, rows, r, tile, span);
    ++r;
  }
}

template <typename T>
void locate(const AttentionArgs& a, const int32_t* table, int64_t kv_head, int64_t tile_start, Tile<T>& tile) {
  const KVArgs& kv = a.kv;
  const int64_t first = tile_start + tile.first;
  int64_t block = first / kv.block_size, slot = first % kv.block_size;
  const char* head = kv.base + kv_head * kv.head_stride;
  const T* entries = reinterpret_cast<const T*>(head + table[block] * kv.block_stride);
  const int64_t to_values = kv.kv_stride / static_cast<int64_t>(sizeof(T));
  for (int j = tile.first; j < tile.last; ++j) {
    tile.keys[j] = entries + slot * kv.head_dim;
    tile.values[j] = tile.keys[j] + to_values;
    if (++slot == kv.block_size && j + 1 < tile.last) {
      slot = 0;
      entries = reinterpret_cast<const T*>(head + table[++block] * kv.block_stride);
    }
  }
  for (int j = 0; j < tile.first; ++j) tile.keys[j] = tile.keys[tile.first], tile.values[j] = tile.values[tile.first];
  for (int j = tile.last; j < kKVTile; ++j) tile.keys[j] = tile.keys[tile.last - 1], tile.values[j] = tile.values[tile.last - 1];
}

struct Scratch {
  float keys[kKVTile * kMaxHeadDim];
  float values[kKVTile * kMaxHeadDim];
};

// The same tile in fp32; widening is exact, so the arithmetic that follows is that of the direct path.
template <typename T>
void widen(const Tile<T>& from, int64_t d, Scratch& scratch, Tile<float>& to) {
  to.first = from.first, to.last = from.last;
  for (int j = from.first; j < from.last; ++j) {
    float* key = scratch.keys + j * d;
    float* value = scratch.values + j * d;
    for (int64_t i = 0; i < d; i += 8) store8(key + i, load8(from.keys[j] + i));
    for (int64_t i = 0; i < d; i += 8) store8(value + i, load8(from.values[j] + i));
  }
  for (int j = 0; j < kKVTile; ++j) {
    const int64_t at = most(from.first, least(from.last - 1, j)) * d;
    to.keys[j] = scratch.keys + at, to.values[j] = scratch.values + at;
  }
}

template <typename T>
void walk(const AttentionArgs& a, Rows& rows, const int32_t* table, int64_t kv_head) {
  const int64_t d = a.kv.head_dim, lowest = rows.position[0], highest = rows.position[rows.count - 1];
  for (int r = 0; r < rows.count; ++r) {
    rows.maximum[r] = -__builtin_inff(), rows.sum[r] = 0.0f;
    for (int64_t i = 0; i < d; i += 8) store8(rows.out[r] + i, zero8());
  }
  const int64_t begin = a.window > 0 ? most(0, lowest - a.window + 1) : 0;
  for (int64_t start = begin / kKVTile * kKVTile; start <= highest; start += kKVTile) {
    Tile<T> tile;
    tile.first = static_cast<int>(most(0, begin - start)), tile.last = static_cast<int>(least(kKVTile, highest + 1 - start));
    locate<T>(a, table, kv_head, start, tile);
    if (rows.count <= kDirectRows) {
      attend_rows<T>(a, rows, tile, start);
    } else {
      static thread_local Scratch scratch;
      Tile<float> wide;
      widen<T>(tile, d, scratch, wide);
      attend_rows<float>(a, rows, wide, start);
    }
  }
  for (int r = 0; r < rows.count; ++r) {
    const vec8 factor = set8(1.0f / rows.sum[r]);
    for (int64_t i = 0; i < d; i += 8) store8(rows.out[r] + i, mul8(load8(rows.out[r] + i), factor));
  }
}

template <typename T>
void task(const AttentionArgs& a, int64_t index) {
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
      const bool is_end = row + 1 == last && head + 1 == (kv_head + 1) * heads;
      if (rows.count == kMaxRows || is_end) {
        walk<T>(a, rows, a.block_tables + low * a.table_stride, kv_head);
        rows.count = 0;
      }
    }
  }
}

}  // namespace

void paged_attention(const AttentionArgs& a) {
  const int64_t num_tasks = a.task_starts[a.num_seqs];
  switch (a.kv.dtype) {
    case DType::f32: return for_tasks(num_tasks, [&](int64_t i) { task<float>(a, i); });
    case DType::bf16: return for_tasks(num_tasks, [&](int64_t i) { task<bf16>(a, i); });
    case DType::f16: return for_tasks(num_tasks, [&](int64_t i) { task<f16>(a, i); });
  }
}

}  // namespace ZG_ISA
}  // namespace zg
