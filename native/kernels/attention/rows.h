// SPDX-License-Identifier: Apache-2.0
// What a tile of 64 keys does to the rows that see some of it: scores, weights, sums (see attention.cpp). A view says where the tile lies.
#pragma once
#include "kernels/linear/tile.h"
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kPanelsPerTile = kKVTile / kPanelWidth;

struct Span {
  int first, last;  // [first, last) inside a tile
};

struct Rows {
  const float* q[kAttentionRows];
  float* out[kAttentionRows];
  int64_t position[kAttentionRows];  // rising
  float maximum[kAttentionRows], sum[kAttentionRows];
  int count;
};

// The keys and values of one tile in the pool, for formats whose entries stand alone; entries outside [first, last) point at some entry
// inside it.
template <typename T>
struct Tile {
  const T* keys[kKVTile];
  const T* values[kKVTile];
  int first, last;
};

// Keys of a tile as panels: sixteen tokens of element i.
template <typename T>
struct KeyPanels {
  static constexpr bool kIsStream = false;  // the next tile is fetched as a whole
  static constexpr int kMostPanels = kPanelsPerTile;
  const T* panels[kPanelsPerTile];
  int64_t stride;

  const T* at(int64_t panel, int64_t i) const { return panels[panel] + i * stride; }
};

// Values of a tile from token `first` on: sixteen columns of token first + i.
template <typename T>
struct ValueRows {
  static constexpr bool kIsStream = false;
  static constexpr int kMostPanels = 1 << 20;
  const T* const* panels;
  int64_t stride;
  int first;

  const T* at(int64_t panel, int64_t i) const {
    const int64_t token = first + i;
    return panels[token / kPanelWidth] + token % kPanelWidth * stride + panel * kPanelWidth;
  }
};

template <typename T>
struct View {
  KeyPanels<T> keys;
  const T* values[kPanelsPerTile];
  int64_t value_stride;
};

struct Scratch {
  float keys[kKVTile * kMaxHeadDim];    // [panel][element][16]
  float values[kKVTile * kMaxHeadDim];  // [key][element], rows padded to whole panels
  float decoded[kPanelWidth * kMaxHeadDim];  // quantized keys on their way to a panel
};

inline int64_t value_stride(int64_t d) { return (d + kPanelWidth - 1) / kPanelWidth * kPanelWidth; }

// Minus infinity in the lanes of the span's panels that lie outside of it.
void hide(float* scores, Span span) {
  const int end = (span.last + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
  for (int group = span.first / kPanelWidth * kPanelWidth; group < end; group += 8)
    if (group < span.first || group + 8 > span.last)
      store8(scores + group, keep8(load8(scores + group), span.first - group, span.last - group, -__builtin_inff()));
}

// score = softcap * tanh(score / softcap) inside the span; what lies outside of it stays minus infinity.
void cap(float* scores, Span span, float softcap) {
  const int end = (span.last + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
  for (int group = span.first / kPanelWidth * kPanelWidth; group < end; group += 8)
    store8(scores + group,
           keep8(soft_cap8(load8(scores + group), softcap), span.first - group, span.last - group, -__builtin_inff()));
}

// Turns scores into weights, moves the row's maximum and sum on, and returns the factor of what was gathered so far.
float soften(float* scores, Span span, float& maximum, float& sum) {
  const int begin = span.first / kPanelWidth * kPanelWidth;
  vec8 best = set8(maximum);
  for (int group = begin; group < span.last; group += kPanelWidth)
    best = max8(max8(best, load8(scores + group)), load8(scores + group + 8));
  const float new_maximum = maximum8(best);
  vec8 total = zero8();
  for (int group = begin; group < span.last; group += kPanelWidth) {
    const vec16 weight = exp16(sub16(load16(scores + group), set16(new_maximum)));
    store16(scores + group, weight);
    total = add8(add8(total, low8(weight)), high8(weight));
  }
  float factors[8];
  store8(factors, exp8(set8(maximum - new_maximum)));
  sum = fma1(sum, factors[0], sum8(total));
  maximum = new_maximum;
  return factors[0];
}

inline Span visible(const AttentionArgs& a, int64_t position, int64_t tile_start) {
  const int64_t begin = a.window > 0 ? most(0, position - a.window + 1) : 0;
  return {static_cast<int>(most(0, begin - tile_start)), static_cast<int>(least(kKVTile, position + 1 - tile_start))};
}

// out[r] = start + sum over keys [first, last) of scores[r][key] * value[key], rows [from, to) of the group.
template <typename T, typename Start>
void add_values(const AttentionArgs& a, const View<T>& view, float* const* out, const float (*scores)[kKVTile], int from, int to, int first,
                int last, const Start& start) {
  const int64_t d = a.kv.head_dim;
  const float* weights[kMaxTileRows] = {};
  for (int r = from; r < to; ++r) weights[r - from] = scores[r] + first;
  rows_by_panels(
      ValueRows<T>{view.values, view.value_stride, first}, last - first, weights, to - from, 0, (d + kPanelWidth - 1) / kPanelWidth,
      [&](int r, int64_t column) { return start(from + r, column); },
      [&](int r, int64_t column, vec8 sum) {
        if (column < d) store8(out[from + r] + column, sum);
      });
}

inline vec16 load_row16(const float* row, int64_t column, int64_t d) {
  if (column + 16 <= d) return load16(row + column);
  float lanes[16] = {0};  // the upper half of the last panel lies past the row's end
  store8(lanes, load8(row + column));
  return load16(lanes);
}

// One tile for up to kMaxTileRows rows that all see some of it.
template <typename T>
void attend(const AttentionArgs& a, Rows& rows, int first_row, int count, const View<T>& view, int64_t tile_start) {
  const int64_t d = a.kv.head_dim;
  alignas(64) float scores[kMaxTileRows][kKVTile];
  float factors[kMaxTileRows];
  Span spans[kMaxTileRows];
  for (int r = 0; r < count; ++r) spans[r] = visible(a, rows.position[first_row + r], tile_start);
  float* const* out = rows.out + first_row;
  const int64_t panels = (spans[count - 1].last + kPanelWidth - 1) / kPanelWidth;
  rows_by_panels(
      view.keys, d, rows.q + first_row, count, spans[0].first / kPanelWidth, panels, FromZero{}, [&](int r, int64_t column, vec8 sum) { store8(scores[r] + column, mul8(sum, set8(a.scale))); });
  for (int r = 0; r < count; ++r) {
    hide(scores[r], spans[r]);
    if (a.softcap > 0.0f) cap(scores[r], spans[r], a.softcap);
    factors[r] = soften(scores[r], spans[r], rows.maximum[first_row + r], rows.sum[first_row + r]);
  }
  const auto from_earlier_tiles = [&](int r, int64_t column) { return mul16(load_row16(out[r], column, d), set16(factors[r])); };
  const auto from_here = [&](int r, int64_t column) { return load_row16(out[r], column, d); };
  // All rows go together over the keys that all of them see, and each position's rows alone over what only they see:
  //   row 0  [ common )          the spans of rising positions start and end later and later; where they start at
  //   row 1  [ common )tail)     different keys (the far edge of a window) each position's rows go alone.
  const bool is_common = spans[0].first == spans[count - 1].first;
  if (is_common) add_values(a, view, out, scores, 0, count, spans[0].first, spans[0].last, from_earlier_tiles);
  for (int r = 0; r < count;) {
    int end = r + 1;
    while (end < count && rows.position[first_row + end] == rows.position[first_row + r]) ++end;
    if (!is_common) add_values(a, view, out, scores, r, end, spans[r].first, spans[r].last, from_earlier_tiles);
    else if (spans[r].last > spans[0].last) add_values(a, view, out, scores, r, end, spans[0].last, spans[r].last, from_here);
    r = end;
  }
}

// The rows that see some of the tile, in groups of nearly equal size. Groups do not change a row's arithmetic.
template <typename T>
void attend_rows(const AttentionArgs& a, Rows& rows, const View<T>& view, int64_t tile_start) {
  int first = 0, last = rows.count;
  const auto sees = [&](int r) {
    const Span span = visible(a, rows.position[r], tile_start);
    return span.first < span.last;
  };
  while (first < last && !sees(first)) ++first;
  while (last > first && !sees(last - 1)) --last;
  const int num_groups = (last - first + kMaxTileRows - 1) / kMaxTileRows;
  for (int group = 0; group < num_groups; ++group) {
    const int from = first + group * (last - first) / num_groups, to = first + (group + 1) * (last - first) / num_groups;
    attend(a, rows, from, to - from, view, tile_start);
  }
}

}  // namespace
}  // namespace ZG_ISA
}  // namespace zg
