// SPDX-License-Identifier: Apache-2.0
// out[t, n] = sum over k of x[t, k] * W[n, k]   (+ bias[n])   (+ out[t, n])
//
// Every element has one accumulator and one order: k from 0 upwards, one fused multiply-add each, then bias, then what out held.
// Rows and panels only decide which elements share a register tile, so a row's bits do not depend on its neighbours.
//
//   x [T][K]          panels [P][K][16]
//   r0 ........       k0: n0 n1 .. n15     one step of the inner loop: 16 weights are loaded and widened once,
//   r1 ........       k1: n0 n1 .. n15     and multiplied with x[r][k] for each row r of the tile
//
// A single row is bound by reading weights: four panels at once give eight independent chains, enough to hide the latency of the
// multiply-add. From six rows on it is bound by arithmetic: 6 x 16 is the largest tile whose accumulators fit sixteen registers.
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {
namespace {

constexpr int kMaxTileRows = 6;
constexpr int64_t kRowBlockBytes = 256 * 1024;  // activations that stay in the second-level cache while panels pass by
constexpr int64_t kTaskWork = 65536;            // multiply-adds of eight lanes: some ten microseconds

inline vec8 finish(vec8 sum, const LinearArgs& a, float* out, int64_t column, int64_t lanes) {
  const bool is_whole = lanes >= 8;
  if (a.bias != nullptr) sum = add8(sum, is_whole ? load8(a.bias + column) : load_some8(a.bias + column, lanes));
  if (a.accumulate) sum = add8(sum, is_whole ? load8(out) : load_some8(out, lanes));
  return sum;
}

inline void put(vec8 sum, const LinearArgs& a, int64_t row, int64_t column) {
  const int64_t lanes = least(8, a.n - column);
  if (lanes <= 0) return;
  float* out = a.out + row * a.out_stride + column;
  sum = finish(sum, a, out, column, lanes);
  if (lanes == 8) store8(out, sum);
  else store_some8(out, sum, lanes);
}

template <typename W, int kRows, int kPanels>
void tile(const LinearArgs& a, int64_t row, int64_t panel) {
  const int64_t panel_size = a.k * kPanelWidth;
  const W* w = static_cast<const W*>(a.panels) + panel * panel_size;
  const float* x = a.x + row * a.x_stride;
  vec8 sums[kRows][kPanels][2];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) sums[r][p][0] = sums[r][p][1] = zero8();
  // The hardware follows one slow stream badly; past the panel's end lies the next one, and a prefetch never faults.
  constexpr int64_t kAhead = (kPanels == 1 ? 2048 : 512) / static_cast<int64_t>(sizeof(W));
  for (int64_t k = 0; k < a.k; ++k) {
    for (int p = 0; p < kPanels; ++p) {
      __builtin_prefetch(w + p * panel_size + k * kPanelWidth + kAhead);
      const vec8 left = load8(w + p * panel_size + k * kPanelWidth);
      const vec8 right = load8(w + p * panel_size + k * kPanelWidth + 8);
      for (int r = 0; r < kRows; ++r) {
        const vec8 value = set8(x[r * a.x_stride + k]);
        sums[r][p][0] = fma8(value, left, sums[r][p][0]);
        sums[r][p][1] = fma8(value, right, sums[r][p][1]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p)
      for (int half = 0; half < 2; ++half) put(sums[r][p][half], a, row + r, (panel + p) * kPanelWidth + half * 8);
}

// Panels [first, last) for `kRows` rows, in groups of kPanels.
template <typename W, int kRows, int kPanels>
void sweep(const LinearArgs& a, int64_t row, int64_t first, int64_t last) {
  int64_t panel = first;
  for (; panel + kPanels <= last; panel += kPanels) tile<W, kRows, kPanels>(a, row, panel);
  for (; panel < last; ++panel) tile<W, kRows, 1>(a, row, panel);
}

template <typename W>
void rows_by_panels(const LinearArgs& a, int64_t row, int64_t num_rows, int64_t first, int64_t last) {
  switch (num_rows) {
    case 1: return sweep<W, 1, 4>(a, row, first, last);
    case 2: return sweep<W, 2, 2>(a, row, first, last);
    case 3: return sweep<W, 3, 2>(a, row, first, last);
    case 4: return sweep<W, 4, 1>(a, row, first, last);
    case 5: return sweep<W, 5, 1>(a, row, first, last);
    default: return sweep<W, 6, 1>(a, row, first, last);
  }
}

// Rows are dealt into tiles of nearly equal height (7 = 4 + 3, not 6 + 1): a tile of one row costs almost as much as one of four.
template <typename W>
void task(const LinearArgs& a, int64_t first, int64_t last) {
  const int64_t num_tiles = (a.num_rows + kMaxTileRows - 1) / kMaxTileRows;
  if (num_tiles <= 1) return rows_by_panels<W>(a, 0, a.num_rows, first, last);
  const int64_t block_tiles = most(1, kRowBlockBytes / (kMaxTileRows * a.k * 4));
  for (int64_t block = 0; block < num_tiles; block += block_tiles) {
    const int64_t block_end = least(num_tiles, block + block_tiles);
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t i = block; i < block_end; ++i) {
        const int64_t row = i * a.num_rows / num_tiles;
        rows_by_panels<W>(a, row, (i + 1) * a.num_rows / num_tiles - row, panel, panel + 1);
      }
    }
  }
}

template <typename W>
void run(const LinearArgs& a) {
  if (a.num_rows == 0) return;
  const int64_t num_panels = (a.n + kPanelWidth - 1) / kPanelWidth;
  const int64_t panel_work = most(1, a.k * 2 * a.num_rows);
  int64_t group = most(1, kTaskWork / panel_work);
  if (a.num_rows <= 3) group = (group + 3) / 4 * 4;
  for_tasks((num_panels + group - 1) / group,
            [&](int64_t i) { task<W>(a, i * group, least(num_panels, (i + 1) * group)); });
}

template <typename W>
void embed(const EmbedArgs& a) {
  for_rows(a.num_rows, a.k * 8, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const int64_t id = a.ids[t];
      const W* w = static_cast<const W*>(a.panels) + id / kPanelWidth * a.k * kPanelWidth + id % kPanelWidth;
      float* out = a.out + t * a.out_stride;
      for (int64_t k = 0; k < a.k; ++k) out[k] = to_float(w[k * kPanelWidth]) * a.scale;
    }
  });
}

}  // namespace

void linear(const LinearArgs& a) {
  switch (a.dtype) {
    case DType::f32: return run<float>(a);
    case DType::bf16: return run<bf16>(a);
    case DType::f16: return run<f16>(a);
  }
}

void embed_rows(const EmbedArgs& a) {
  switch (a.dtype) {
    case DType::f32: return embed<float>(a);
    case DType::bf16: return embed<bf16>(a);
    case DType::f16: return embed<f16>(a);
  }
}

}  // namespace ZG_ISA
}  // namespace zg
