// SPDX-License-Identifier: Apache-2.0
// Activations to bytes: 32 values get the scale max|x| / 127 and are rounded to nearest, ties to even.
//
// NaN and infinity have no place among bytes: the group's scale becomes NaN, and with it every output of the row. Without a sign,
// floats are ordered as their bits are, infinity above all numbers and NaN above infinity, so one integer maximum finds them.
#pragma once
#include "kernels/qlinear/dots.h"

namespace zg {
namespace ZG_ISA {

constexpr float kSmallest = 0x1p-100f;  // below it, one over the scale could be infinite; such a group counts as zeros

#if ZG_ISA_avx2

inline uint32_t peak_bits(const float* x) {
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < kGroup; i += 8) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(load8(x + i)), _mm256_set1_epi32(0x7fffffff));
    largest = _mm256_max_epi32(largest, bits);
  }
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
}

// Rounded values and their sum; what is packed lies in halves of registers and is put in order at the end.
inline int32_t round_group(const float* x, float inverse, int8_t* out) {
  __m256i ints[4];
  for (int i = 0; i < 4; ++i) ints[i] = _mm256_cvtps_epi32(mul8(load8(x + 8 * i), set8(inverse)));
  const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(ints[0], ints[1]), _mm256_add_epi32(ints[2], ints[3]));
  const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(ints[0], ints[1]), _mm256_packs_epi32(ints[2], ints[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(words, order));
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(half);
}

#else

inline uint32_t peak_bits(const float* x) {
  uint32_t largest = 0;
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

inline int32_t round_group(const float* x, float inverse, int8_t* out) {
  int32_t sum = 0;
  for (int i = 0; i < kGroup; ++i) {
    out[i] = static_cast<int8_t>(__builtin_rintf(x[i] * inverse));
    sum += out[i];
  }
  return sum;
}

#endif

inline void quantize_group(const float* x, ActivationGroup* out) {
  const uint32_t bits = peak_bits(x);
  const float peak = float_of(bits);
  if (bits < 0x7f800000u && peak >= kSmallest) {
    out->sum = round_group(x, 127.0f / peak, out->values);
    out->scale = peak / 127.0f;
    return;
  }
  __builtin_memset(out->values, 0, kGroup);
  out->sum = 0;
  out->scale = bits < 0x7f800000u ? 0.0f : __builtin_nanf("");
}

}  // namespace ZG_ISA
}  // namespace zg
