// SPDX-License-Identifier: Apache-2.0
// Quantized weights as they lie in memory, quantized activations, and the exact integer products of a group of both.
//
//   panel  [K / 32] records of sixteen rows       activations [K / 32] groups of one row
//   record 16 scales fp16 | quads of bytes        group  32 x int8 | scale fp32 | sum of the 32, int32
//
// Quad j of a row is its bytes 4j .. 4j + 3, and the sixteen rows' quads lie side by side: 64 bytes, one register of AVX-512, so
// that a byte dot product with four activations gives sixteen outputs. Rows are those of ggml, byte for byte: Q8_0 has eight
// quads of int8; Q4_0 has four, whose low nibbles are values 0 .. 15 and whose high ones 16 .. 31, plus eight.
//
// Sums of a group are integers below 32 * 128 * 127 < 2^24: exact in int32 and in fp32, in whatever order they are added. So every
// instruction set has the same integers, and rows share a register tile or not without a trace.
#pragma once
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

struct ActivationGroup {
  int8_t values[kGroup];  // -127 .. 127
  float scale;
  int32_t sum;  // for weights that are stored with an offset: sum (w + c) x = sum w x + c sum x
};
static_assert(sizeof(ActivationGroup) == kGroupScratchBytes, "the caller's scratch");

struct Q8 {
  static constexpr int64_t kBlockBytes = 34;
  static constexpr int kOffset = 128;  // added where bytes must be unsigned
};

struct Q4 {
  static constexpr int64_t kBlockBytes = 18;
  static constexpr int kOffset = 8;  // part of the format
};

constexpr int64_t kScaleBytes = kPanelWidth * 2;
constexpr int kQuads = kGroup / 4;

inline int32_t quad(const ActivationGroup& x, int j) {
  int32_t bytes;
  __builtin_memcpy(&bytes, x.values + 4 * j, 4);
  return bytes;
}

// One weight as the integer that it is.
inline int weight(Q8, const uint8_t* at, int lane, int k) { return static_cast<int8_t>(at[k / 4 * 64 + lane * 4 + k % 4]); }
inline int weight(Q4, const uint8_t* at, int lane, int k) {
  const int byte = at[k % 16 / 4 * 64 + lane * 4 + k % 4];
  return (k < 16 ? byte & 15 : byte >> 4) - Q4::kOffset;
}

// Outputs that travel in one register: a panel's sixteen with AVX-512, else eight of them at a time.
#if ZG_ISA_avx512
using part = vec16;
inline part zero_part() { return zero16(); }
inline part scales_of(const uint8_t* record, int) { return load16(reinterpret_cast<const f16*>(record)); }
inline part scaled(part scales, float by) { return mul16(scales, set16(by)); }
inline part fma_part(part a, part b, part c) { return fma16(a, b, c); }
#else
using part = vec8;
inline part zero_part() { return zero8(); }
inline part scales_of(const uint8_t* record, int index) { return load8(reinterpret_cast<const f16*>(record) + 8 * index); }
inline part scaled(part scales, float by) { return mul8(scales, set8(by)); }
inline part fma_part(part a, part b, part c) { return fma8(a, b, c); }
#endif
constexpr int kPartLanes = sizeof(part) / sizeof(float);
constexpr int kParts = kPanelWidth / kPartLanes;
constexpr int64_t kPartBytes = 64 / kParts;

// In what follows, dots<Codec, kRows>(at, x, group, out) has `at` at the quads of a part and gives each row's sums, as floats.
#if ZG_ISA_avx512vnni

inline void load_quads(Q8, const uint8_t* at, __m512i* w) {
  for (int j = 0; j < kQuads; ++j) w[j] = _mm512_xor_si512(_mm512_loadu_si512(at + 64 * j), _mm512_set1_epi8(-128));
}
inline void load_quads(Q4, const uint8_t* at, __m512i* w) {
  const __m512i nibble = _mm512_set1_epi8(15);
  for (int j = 0; j < kQuads / 2; ++j) {
    const __m512i bytes = _mm512_loadu_si512(at + 64 * j);
    w[j] = _mm512_and_si512(bytes, nibble);
    w[j + kQuads / 2] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
  }
}

// The weights of a group stay in eight registers while the rows pass by; two chains each hide the latency of the byte product.
template <typename Codec, int kRows>
inline void dots(const uint8_t* at, const ActivationGroup* const* x, int64_t group, part* out) {
  __m512i w[kQuads];
  load_quads(Codec{}, at, w);
  for (int r = 0; r < kRows; ++r) {
    const ActivationGroup& row = x[r][group];
    __m512i a = _mm512_set1_epi32(-Codec::kOffset * row.sum), b = _mm512_setzero_si512();
    for (int j = 0; j < kQuads / 2; ++j) {
      a = _mm512_dpbusd_epi32(a, w[j], _mm512_set1_epi32(quad(row, j)));
      b = _mm512_dpbusd_epi32(b, w[j + kQuads / 2], _mm512_set1_epi32(quad(row, j + kQuads / 2)));
    }
    out[r] = _mm512_cvtepi32_ps(_mm512_add_epi32(a, b));
  }
}

#elif ZG_ISA_avx2

// maddubs adds two products of an unsigned and a signed byte in 16 bits, and saturates. With Q8_0, |w| <= 128 and |x| <= 127:
// 2 * 128 * 127 = 32512 < 32767 fits, a second pair would not, so that every step is widened. With Q4_0, 0 <= w <= 15:
// all eight steps of a group together are at most 32 / 2 * 15 * 127 = 30480 < 32767, and the group is widened once.
#if ZG_ISA_avx512

using bytes = __m512i;
inline bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline bytes set_quad(int32_t v) { return _mm512_set1_epi32(v); }
inline bytes set_byte(char v) { return _mm512_set1_epi8(v); }
inline bytes and_bytes(bytes a, bytes b) { return _mm512_and_si512(a, b); }
inline bytes high_nibbles(bytes a, bytes mask) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), mask); }
inline bytes magnitude(bytes a) { return _mm512_abs_epi8(a); }
inline bytes with_sign_of(bytes x, bytes w) { return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x); }
inline bytes pairs(bytes w, bytes x) { return _mm512_maddubs_epi16(w, x); }
inline bytes widened(bytes a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
inline bytes add_words(bytes a, bytes b) { return _mm512_add_epi16(a, b); }
inline bytes add_ints(bytes a, bytes b) { return _mm512_add_epi32(a, b); }
inline part to_floats(bytes a) { return _mm512_cvtepi32_ps(a); }

#else

using bytes = __m256i;
inline bytes load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline bytes set_quad(int32_t v) { return _mm256_set1_epi32(v); }
inline bytes set_byte(char v) { return _mm256_set1_epi8(v); }
inline bytes and_bytes(bytes a, bytes b) { return _mm256_and_si256(a, b); }
inline bytes high_nibbles(bytes a, bytes mask) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), mask); }
inline bytes magnitude(bytes a) { return _mm256_abs_epi8(a); }
inline bytes with_sign_of(bytes x, bytes w) { return _mm256_sign_epi8(x, w); }
inline bytes pairs(bytes w, bytes x) { return _mm256_maddubs_epi16(w, x); }
inline bytes widened(bytes a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
inline bytes add_words(bytes a, bytes b) { return _mm256_add_epi16(a, b); }
inline bytes add_ints(bytes a, bytes b) { return _mm256_add_epi32(a, b); }
inline part to_floats(bytes a) { return _mm256_cvtepi32_ps(a); }

#endif

template <int kRows>
inline void sum_products(Q8, const uint8_t* at, const ActivationGroup* const* x, int64_t group, bytes* sums) {
  for (int j = 0; j < kQuads; ++j) {
    const bytes w = load_bytes(at + 64 * j), size = magnitude(w);
    for (int r = 0; r < kRows; ++r) {
      const bytes products = widened(pairs(size, with_sign_of(set_quad(quad(x[r][group], j)), w)));
      sums[r] = j == 0 ? products : add_ints(sums[r], products);
    }
  }
}

template <int kRows>
inline void sum_products(Q4, const uint8_t* at, const ActivationGroup* const* x, int64_t group, bytes* sums) {
  const bytes nibble = set_byte(15);
  for (int j = 0; j < kQuads / 2; ++j) {
    const bytes both = load_bytes(at + 64 * j), low = and_bytes(both, nibble), high = high_nibbles(both, nibble);
    for (int r = 0; r < kRows; ++r) {
      const bytes first = pairs(low, set_quad(quad(x[r][group], j)));
      const bytes products = add_words(first, pairs(high, set_quad(quad(x[r][group], j + kQuads / 2))));
      sums[r] = j == 0 ? products : add_words(sums[r], products);
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = add_ints(widened(sums[r]), set_quad(-Q4::kOffset * x[r][group].sum));
}

template <typename Codec, int kRows>
inline void dots(const uint8_t* at, const ActivationGroup* const* x, int64_t group, part* out) {
  bytes sums[kRows];
  sum_products<kRows>(Codec{}, at, x, group, sums);
  for (int r = 0; r < kRows; ++r) out[r] = to_floats(sums[r]);
}

#else  // portable

template <typename Codec, int kRows>
inline void dots(const uint8_t* at, const ActivationGroup* const* x, int64_t group, part* out) {
  for (int lane = 0; lane < kPartLanes; ++lane) {
    int32_t sums[kRows] = {0};
    for (int k = 0; k < kGroup; ++k) {
      const int32_t w = weight(Codec{}, at, lane, k);
      for (int r = 0; r < kRows; ++r) sums[r] += w * x[r][group].values[k];
    }
    for (int r = 0; r < kRows; ++r) out[r].lane[lane] = static_cast<float>(sums[r]);
  }
}

#endif

}  // namespace ZG_ISA
}  // namespace zg
