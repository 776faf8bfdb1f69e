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
// A single row is bound by reading weights: four panels at once give eight independent chains, enough to hide the latency of the
// multiply-add. From six rows on it is bound by arithmetic: 6 x 16 is the largest tile whose accumulators fit sixteen registers.
#pragma once
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

constexpr int kMaxTileRows = 6;
constexpr int64_t kRowBlockBytes = 256 * 1024;  // activations that stay in the second-level cache while panels pass by

// put(r, column, sum): eight columns of row r, for every row and both halves of every panel.
template <typename W, int kRows, int kPanels, typename Put>
inline void tile(const W* w, int64_t k, const float* const* x, int64_t column, const Put& put) {
  const int64_t panel_size = k * kPanelWidth;
  vec8 sums[kRows][kPanels][2];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) sums[r][p][0] = sums[r][p][1] = zero8();
  // The hardware follows one slow stream badly; past the panel's end lies the next one, and a prefetch never faults.
  constexpr int64_t kAhead = (kPanels == 1 ? 2048 : 512) / static_cast<int64_t>(sizeof(W));
  for (int64_t i = 0; i < k; ++i) {
    for (int p = 0; p < kPanels; ++p) {
      __builtin_prefetch(w + p * panel_size + i * kPanelWidth + kAhead);
      const vec8 left = load8(w + p * panel_size + i * kPanelWidth);
      const vec8 right = load8(w + p * panel_size + i * kPanelWidth + 8);
      for (int r = 0; r < kRows; ++r) {
        const vec8 value = set8(x[r][i]);
        sums[r][p][0] = fma8(value, left, sums[r][p][0]);
        sums[r][p][1] = fma8(value, right, sums[r][p][1]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p)
      for (int half = 0; half < 2; ++half) put(r, column + p * kPanelWidth + half * 8, sums[r][p][half]);
}

// Panels [first, last) for `kRows` rows, in groups of kPanels.
template <typename W, int kRows, int kPanels, typename Put>
void sweep(const W* w, int64_t k, const float* const* x, int64_t first, int64_t last, const Put& put) {
  const float* rows[kRows];  // a copy: nothing that is written through `put` can be one of these addresses
  for (int r = 0; r < kRows; ++r) rows[r] = x[r];
  const int64_t panel_size = k * kPanelWidth;
  int64_t panel = first;
  for (; panel + kPanels <= last; panel += kPanels)
    tile<W, kRows, kPanels>(w + panel * panel_size, k, rows, panel * kPanelWidth, put);
  for (; panel < last; ++panel) tile<W, kRows, 1>(w + panel * panel_size, k, rows, panel * kPanelWidth, put);
}

template <typename W, typename Put>
void rows_by_panels(const W* w, int64_t k, const float* const* x, int64_t num_rows, int64_t first, int64_t last, const Put& put) {
  switch (num_rows) {
    case 1: return sweep<W, 1, 4>(w, k, x, first, last, put);
    case 2: return sweep<W, 2, 2>(w, k, x, first, last, put);
    case 3: return sweep<W, 3, 2>(w, k, x, first, last, put);
    case 4: return sweep<W, 4, 1>(w, k, x, first, last, put);
    case 5: return sweep<W, 5, 1>(w, k, x, first, last, put);
    default: return sweep<W, 6, 1>(w, k, x, first, last, put);
  }
}

// Panels [first, last) for all rows: row_at(i) is row i's address, put(i, column, sum) takes eight of its results.
// Rows are dealt into tiles of nearly equal height (7 = 4 + 3, not 6 + 1): a tile of one row costs almost as much as one of four.
template <typename W, typename RowAt, typename Put>
void product(const W* w, int64_t k, int64_t num_rows, int64_t first, int64_t last, const RowAt& row_at, const Put& put) {
  const auto tile_of_rows = [&](int64_t row, int64_t count, int64_t from, int64_t to) {
    const float* x[kMaxTileRows];
    for (int64_t r = 0; r < count; ++r) x[r] = row_at(row + r);
    rows_by_panels<W>(w, k, x, count, from, to, [&](int r, int64_t column, vec8 sum) { put(row + r, column, sum); });
  };
  const int64_t num_tiles = (num_rows + kMaxTileRows - 1) / kMaxTileRows;
  if (num_tiles <= 1) return tile_of_rows(0, num_rows, first, last);
  const int64_t block_tiles = most(1, kRowBlockBytes / (kMaxTileRows * k * 4));
  for (int64_t block = 0; block < num_tiles; block += block_tiles) {
    const int64_t block_end = least(num_tiles, block + block_tiles);
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t i = block; i < block_end; ++i) {
        const int64_t row = i * num_rows / num_tiles;
        tile_of_rows(row, (i + 1) * num_rows / num_tiles - row, panel, panel + 1);
      }
    }
  }
}

}  // namespace ZG_ISA
}  // namespace zg
