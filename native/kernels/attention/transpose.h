// SPDX-License-Identifier: Apache-2.0
// Sixteen rows become the sixteen columns of a panel: panel[i][j] = row[j][i], widened to fp32 on the way.
#pragma once
#include "kernels/parallel.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

#if ZG_ISA_avx512

// In place, in four rounds: pairs, fours, eights, sixteens.
inline void transpose16(__m512* r) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  // Lane block b of r[4 g + c] now holds column 4 b + c of rows 4 g .. 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 even_low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), odd_low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88), odd_high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    t[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    t[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    t[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

template <typename T>
inline void panel_of_rows(const T* const* rows, int64_t width, float* panel) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    __m512 square[16];
    for (int j = 0; j < 16; ++j) square[j] = load16(rows[j] + i);
    transpose16(square);
    for (int j = 0; j < 16; ++j) store16(panel + (i + j) * kPanelWidth, square[j]);
  }
  for (; i < width; ++i)
    for (int j = 0; j < 16; ++j) panel[i * kPanelWidth + j] = to_float(rows[j][i]);
}

#elif ZG_ISA_avx2

inline void transpose8(__m256* r) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    t[c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
    t[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

template <typename T>
inline void panel_of_rows(const T* const* rows, int64_t width, float* panel) {
  for (int64_t i = 0; i < width; i += 8) {  // head sizes are multiples of eight
    for (int half = 0; half < 16; half += 8) {
      __m256 square[8];
      for (int j = 0; j < 8; ++j) square[j] = load8(rows[half + j] + i);
      transpose8(square);
      for (int j = 0; j < 8; ++j) store8(panel + (i + j) * kPanelWidth + half, square[j]);
    }
  }
}

#else

template <typename T>
inline void panel_of_rows(const T* const* rows, int64_t width, float* panel) {
  for (int64_t i = 0; i < width; ++i)
    for (int j = 0; j < 16; ++j) panel[i * kPanelWidth + j] = to_float(rows[j][i]);
}

#endif

}  // namespace ZG_ISA
}  // namespace zg
