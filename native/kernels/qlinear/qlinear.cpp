// SPDX-License-Identifier: Apache-2.0
// out[t, n] = sum over groups of 32 of (integer dot product) * (scale of the weights * scale of the activations)   (+ bias) (+ out)
//
// Weights are computed with as they are stored. A row of activations is quantized first: every group of 32 gets the scale
// max|x| / 127, as ggml does while it runs, but in fp32 and rounded to nearest even. What follows is exact inside a group (dots.h) and
// then one fused multiply-add per group, groups rising, one accumulator per element: a row's bits do not depend on its neighbours.
//
// One row is bound by reading weights: 544 bytes of Q8_0 or 288 of Q4_0 for 512 multiply-adds. Many rows are bound by byte products;
// the weights of a group then stay in registers while the rows of a tile pass by.
#include "kernels/parallel.h"
#include "kernels/qlinear/dots.h"
#include "kernels/qlinear/quantize.h"

namespace zg {
namespace ZG_ISA {
namespace {

#if ZG_ISA_avx512
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 4;
#endif
constexpr int64_t kTaskWork = 65536;    // bytes of weights times rows that are worth a thread's while: a few microseconds
constexpr int64_t kTasksPerThread = 4;  // so that a thread that is held up leaves the rest to the others
constexpr int64_t kTaskRows = 48;

inline void put8(vec8 sum, const QuantizedArgs& a, float* out, int64_t column) {
  const int64_t lanes = least(8, a.n - column);
  if (lanes <= 0) return;
  const bool is_whole = lanes == 8;
  if (a.bias != nullptr) sum = add8(sum, is_whole ? load8(a.bias + column) : load_some8(a.bias + column, lanes));
  if (a.accumulate) sum = add8(sum, is_whole ? load8(out + column) : load_some8(out + column, lanes));
  if (is_whole) store8(out + column, sum);
  else store_some8(out + column, sum, lanes);
}

inline const ActivationGroup* row_of(const QuantizedArgs& a, int64_t row) {
  return static_cast<const ActivationGroup*>(a.scratch) + row * (a.k / kGroup);
}

// One panel times `kRows` rows.
template <typename Codec, int kRows>
inline void tile(const QuantizedArgs& a, int64_t panel, int64_t first_row) {
  constexpr int64_t kRecordBytes = kPanelWidth * Codec::kBlockBytes;
  const int64_t num_groups = a.k / kGroup;
  const uint8_t* record = static_cast<const uint8_t*>(a.panels) + panel * num_groups * kRecordBytes;
  const ActivationGroup* x[kRows];
  part sums[kParts][kRows];
  for (int r = 0; r < kRows; ++r) x[r] = row_of(a, first_row + r);
  for (int p = 0; p < kParts; ++p)
    for (int r = 0; r < kRows; ++r) sums[p][r] = zero_part();
  for (int64_t group = 0; group < num_groups; ++group, record += kRecordBytes) {
    // Far enough for the slowest memory; past the panel's end lies the next one, and a prefetch never faults.
    for (int64_t line = 0; line < kRecordBytes; line += 64) __builtin_prefetch(record + 4096 + line);
    for (int p = 0; p < kParts; ++p) {
      part values[kRows];
      dots<Codec, kRows>(record + kScaleBytes + p * kPartBytes, x, group, values);
      const part scales = scales_of(record, p);
      for (int r = 0; r < kRows; ++r) sums[p][r] = fma_part(values[r], scaled(scales, x[r][group].scale), sums[p][r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* out = a.out + (first_row + r) * a.out_stride;
#if ZG_ISA_avx512
    put8(low8(sums[0][r]), a, out, panel * kPanelWidth);
    put8(high8(sums[0][r]), a, out, panel * kPanelWidth + 8);
#else
    for (int p = 0; p < kParts; ++p) put8(sums[p][r], a, out, panel * kPanelWidth + p * kPartLanes);
#endif
  }
}

template <typename Codec, int kRows = kTileRows>
void tile_of(const QuantizedArgs& a, int64_t panel, int64_t first_row, int64_t num_rows) {
  if constexpr (kRows > 1) {
    if (num_rows < kRows) return tile_of<Codec, kRows - 1>(a, panel, first_row, num_rows);
  }
  tile<Codec, kRows>(a, panel, first_row);
}

// Panels [first, last) times a band of rows, dealt into tiles of nearly equal height. Rows come in blocks whose quantized activations
// stay in half of the second-level cache while all panels pass by.
template <typename Codec>
void band(const QuantizedArgs& a, int64_t first, int64_t last, int64_t first_row, int64_t last_row) {
  const int64_t num_rows = last_row - first_row, num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  const int64_t block_tiles = most(1, second_level_cache_bytes() / 2 / (kTileRows * a.k / kGroup * kGroupScratchBytes));
  const int64_t num_blocks = (num_tiles + block_tiles - 1) / block_tiles;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t first_tile = block * num_tiles / num_blocks, last_tile = (block + 1) * num_tiles / num_blocks;
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t i = first_tile; i < last_tile; ++i) {
        const int64_t row = i * num_rows / num_tiles;
        tile_of<Codec>(a, panel, first_row + row, (i + 1) * num_rows / num_tiles - row);
      }
    }
  }
}

template <typename Codec>
void run(const QuantizedArgs& a) {
  const int64_t num_groups = a.k / kGroup, num_panels = (a.n + kPanelWidth - 1) / kPanelWidth;
  for_rows(a.num_rows, a.k * 2, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t g = 0; g < num_groups; ++g)
        quantize_group(a.x + t * a.x_stride + g * kGroup, static_cast<ActivationGroup*>(a.scratch) + t * num_groups + g);
  });
  const int64_t work = num_panels * a.k * kPanelWidth * a.num_rows;
  const int64_t num_columns = most(1, least(least(work / kTaskWork, kTasksPerThread * num_threads()), num_panels));
  const int64_t num_bands = most(1, least(work / kTaskWork / num_columns, a.num_rows / kTaskRows));
  for_tasks(num_columns * num_bands, [&](int64_t i) {
    const int64_t column = i / num_bands, part = i % num_bands;
    band<Codec>(a, column * num_panels / num_columns, (column + 1) * num_panels / num_columns, part * a.num_rows / num_bands,
                (part + 1) * a.num_rows / num_bands);
  });
}

template <typename Codec>
void embed(const QuantizedEmbedArgs& a) {
  constexpr int64_t kRecordBytes = kPanelWidth * Codec::kBlockBytes;
  for_rows(a.num_rows, a.k * 8, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const int lane = static_cast<int>(a.ids[t] % kPanelWidth);
      const uint8_t* record = static_cast<const uint8_t*>(a.panels) + a.ids[t] / kPanelWidth * (a.k / kGroup) * kRecordBytes;
      for (int64_t k = 0; k < a.k; k += kGroup, record += kRecordBytes) {
        const float scale = to_float(reinterpret_cast<const f16*>(record)[lane]);
        for (int i = 0; i < kGroup; ++i)
          a.out[t * a.out_stride + k + i] = scale * static_cast<float>(weight(Codec{}, record + kScaleBytes, lane, i)) * a.scale;
      }
    }
  });
}

}  // namespace

void quantized_linear(const QuantizedArgs& a) {
  if (a.num_rows == 0) return;
  if (a.block == Block::q8_0) run<Q8>(a);
  else run<Q4>(a);
}

void quantized_embed(const QuantizedEmbedArgs& a) {
  if (a.block == Block::q8_0) embed<Q8>(a);
  else embed<Q4>(a);
}

}  // namespace ZG_ISA
}  // namespace zg
