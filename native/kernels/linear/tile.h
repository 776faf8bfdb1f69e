// SPDX-License-Identifier: Apache-2.0
// The product of activation rows with panels of a matrix; shared by the linear and by the linears of experts.
//
// Every element has one accumulator and one order: k from 0 upwards, one fused multiply-add each. Rows and panels only decide which
// elements share a register tile, so a row's bits do not depend on its neighbours.
//
//   x [T][K]          panels [P][K][16]
//   r0 ........       k0: n0 n1 .. n15     one step of the inner loop: 16 weights are loaded and widened once,
//   r1 ........       k1: n0 n1 .. n15     and multiplied with x[r][k] for each row r of the tile
//
// A single row is bound by reading weights: several panels at once give independent chains, enough to hide the latency of the
// multiply-add. Many rows are bound by arithmetic: the tile is then the largest whose accumulators fit the registers, 6 x 16 in
// sixteen registers of eight lanes, 12 x 32 in thirty-two of sixteen.
#pragma once
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

#if ZG_ISA_avx512
constexpr int kMaxTileRows = 12;
constexpr int panels_at_once(int num_rows) { return num_rows <= 2 ? 8 : num_rows <= 6 ? 4 : 2; }
#else
constexpr int kMaxTileRows = 6;
constexpr int panels_at_once(int num_rows) { return num_rows == 1 ? 4 : num_rows <= 3 ? 2 : 1; }
#endif

// Where the sums of a tile begin: at nothing, unless a caller goes on from what it has.
struct FromZero {
  vec16 operator()(int, int64_t) const { return zero16(); }
};

// Weights as panels of sixteen columns: element (i, column) of panel p is data[p * panel_stride + i * k_stride + column].
template <typename W>
struct Panels {
  static constexpr bool kIsStream = true;  // read once, in order: fetched ahead
  static constexpr int kMostPanels = 1 << 20;
  const W* data;
  int64_t panel_stride, k_stride;

  const W* at(int64_t panel, int64_t i) const { return data + panel * panel_stride + i * k_stride; }
};

// start(r, column) gives the sixteen sums that a row begins with, put(r, column, sum) takes eight of its results.
template <int kRows, int kPanels, typename W, typename Start, typename Put>
inline void tile(const W& w, int64_t k, const float* const* x, int64_t panel, const Start& start, const Put& put) {
  const int64_t column = panel * kPanelWidth;
  vec16 sums[kRows][kPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) sums[r][p] = start(r, column + p * kPanelWidth);
  // Far enough for the slowest memory; past the panel's end lies the next one, and a prefetch never faults.
  constexpr int64_t kAhead = 2048;
  for (int64_t i = 0; i < k; ++i) {
    vec16 weights[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const auto* at = w.at(panel + p, i);
      if constexpr (W::kIsStream) __builtin_prefetch(reinterpret_cast<const char*>(at) + kAhead);
      weights[p] = load16(at);
    }
    for (int r = 0; r < kRows; ++r) {
      const vec16 value = set16(x[r][i]);
      for (int p = 0; p < kPanels; ++p) sums[r][p] = fma16(value, weights[p], sums[r][p]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) {
      put(r, column + p * kPanelWidth, low8(sums[r][p]));
      put(r, column + p * kPanelWidth + 8, high8(sums[r][p]));
    }
}

// Panels [first, last) for `kRows` rows, in groups of kPanels; what is left over in groups of half as many.
template <int kRows, int kPanels, typename W, typename Start, typename Put>
void sweep(const W& w, int64_t k, const float* const* x, int64_t first, int64_t last, const Start& start, const Put& put) {
  const float* rows[kRows];  // a copy: nothing that is written through `put` can be one of these addresses
  for (int r = 0; r < kRows; ++r) rows[r] = x[r];
  int64_t panel = first;
  for (; panel + kPanels <= last; panel += kPanels) tile<kRows, kPanels>(w, k, rows, panel, start, put);
  if constexpr (kPanels > 1) sweep<kRows, kPanels / 2>(w, k, x, panel, last, start, put);
}

// w.at(panel, i) is the address of sixteen weights: `Panels`, or whatever knows where they lie.
template <int kRows = kMaxTileRows, typename W, typename Start, typename Put>
void rows_by_panels(const W& w, int64_t k, const float* const* x, int64_t num_rows, int64_t first, int64_t last, const Start& start,
                    const Put& put) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) return rows_by_panels<kRows - 1>(w, k, x, num_rows, first, last, start, put);
  }
  constexpr int kPanels = panels_at_once(kRows) < W::kMostPanels ? panels_at_once(kRows) : W::kMostPanels;
  sweep<kRows, kPanels>(w, k, x, first, last, start, put);
}

// Panels [first, last) for all rows: row_at(i) is row i's address, put(i, column, sum) takes eight of its results.
// Rows are dealt into tiles of nearly equal height (7 = 4 + 3, not 6 + 1): a tile of one row costs almost as much as one of four.
template <typename W, typename RowAt, typename Put>
void product(const W* w, int64_t k, int64_t num_rows, int64_t first, int64_t last, const RowAt& row_at, const Put& put) {
  const auto tile_of_rows = [&](int64_t row, int64_t count, int64_t from, int64_t to) {
    const float* x[kMaxTileRows];
    for (int64_t r = 0; r < count; ++r) x[r] = row_at(row + r);
    rows_by_panels(Panels<W>{w, k * kPanelWidth, kPanelWidth}, k, x, count, from, to, FromZero{},
                      [&](int r, int64_t column, vec8 sum) { put(row + r, column, sum); });
  };
  const int64_t num_tiles = (num_rows + kMaxTileRows - 1) / kMaxTileRows;
  if (num_tiles <= 1) return tile_of_rows(0, num_rows, first, last);
  // Activations that stay in half of the second-level cache while all panels pass by; each further block reads the weights again.
  const int64_t block_tiles = most(1, second_level_cache_bytes() / 2 / (kMaxTileRows * k * 4));
  const int64_t num_blocks = (num_tiles + block_tiles - 1) / block_tiles;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t block_first = block * num_tiles / num_blocks, block_last = (block + 1) * num_tiles / num_blocks;
    constexpr int64_t kStep = panels_at_once(kMaxTileRows);
    for (int64_t panel = first; panel < last; panel += kStep) {
      for (int64_t i = block_first; i < block_last; ++i) {
        const int64_t row = i * num_rows / num_tiles;
        tile_of_rows(row, (i + 1) * num_rows / num_tiles - row, panel, least(last, panel + kStep));
      }
    }
  }
}

}  // namespace ZG_ISA
}  // namespace zg
