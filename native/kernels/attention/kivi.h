// SPDX-License-Identifier: Apache-2.0
// KIVI (Liu et al., arXiv 2402.02750): records of 32 values of B bits that share a scale and a minimum, keys along tokens, values along
// channels. A block of 32 tokens is packed when it is full; until then it lies in plain numbers in the sequence's tail block.
//
//   record  scale fp16 | minimum fp16 | 4 B bytes of codes          value = code * scale + minimum
//   codes   in order, from the low end of each byte
//   keys    of one head: D records, channel after channel           values: 32 tokens of D / 32 records each
//
// The minimum is rounded down and the scale up to fp16, so that every value lies in the grid's range: the error is at most scale / 2.
// A query sees the packed numbers of every block but its own, however it came to be computed: what a position sees is a function of the
// position alone. (The paper keeps the last 32 or 128 values of each token's window in full; here keys and values follow one rule.)
#pragma once
#include "kernels/attention/entries.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

constexpr int kKiviTokens = 32;

template <int kBits>
struct KiviRecord {
  uint8_t bytes[4 + 4 * kBits];
};

#if ZG_ISA_avx512

// Sixteen codes from sixteen times kBits bits, as floats.
template <int kBits>
inline vec16 codes16(const uint8_t* from) {
  if constexpr (kBits == 2) {
    int32_t word;
    __builtin_memcpy(&word, from, 4);
    const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srlv_epi32(_mm512_set1_epi32(word), places), _mm512_set1_epi32(3)));
  } else {
    const __m128i bytes = load_bytes8(from), mask = _mm_set1_epi8(15);
    const __m128i nibbles = _mm_unpacklo_epi8(_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(nibbles));
  }
}

template <int kBits>
inline void decode_record(const KiviRecord<kBits>* record, float* low, float* high) {
  int32_t halves;
  __builtin_memcpy(&halves, record->bytes, 4);
  const __m128 numbers = _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
  const vec16 scale = _mm512_broadcastss_ps(numbers), minimum = _mm512_broadcastss_ps(_mm_movehdup_ps(numbers));
  store16(low, fma16(codes16<kBits>(record->bytes + 4), scale, minimum));
  store16(high, fma16(codes16<kBits>(record->bytes + 4 + 2 * kBits), scale, minimum));
}

#else

// The first sixteen values and the others.
template <int kBits>
inline void decode_record(const KiviRecord<kBits>* record, float* low, float* high) {
  const float scale = entry_scale(record->bytes), minimum = entry_scale(record->bytes + 2);
  float codes[kKiviTokens];
#if ZG_ISA_avx2
  const __m128i mask = _mm_set1_epi8((1 << kBits) - 1);
  alignas(16) uint8_t bytes[kKiviTokens];
  if constexpr (kBits == 4) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(record->bytes + 4));
    const __m128i even = _mm_and_si128(all, mask), odd = _mm_and_si128(_mm_srli_epi16(all, 4), mask);
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm_unpacklo_epi8(even, odd));
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes + 16), _mm_unpackhi_epi8(even, odd));
  } else {
    const __m128i all = load_bytes8(record->bytes + 4);
    const __m128i first = _mm_unpacklo_epi8(_mm_and_si128(all, mask), _mm_and_si128(_mm_srli_epi16(all, 2), mask));
    const __m128i second = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(all, 4), mask), _mm_and_si128(_mm_srli_epi16(all, 6), mask));
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), _mm_unpacklo_epi16(first, second));
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes + 16), _mm_unpackhi_epi16(first, second));
  }
  for (int i = 0; i < kKiviTokens; i += 8) store8(codes + i, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_bytes8(bytes + i))));
#else
  for (int i = 0; i < kKiviTokens; ++i)
    codes[i] = static_cast<float>((record->bytes[4 + i * kBits / 8] >> (i * kBits % 8)) & ((1 << kBits) - 1));
#endif
  for (int i = 0; i < 16; i += 8) {
    store8(low + i, fma8(load8(codes + i), set8(scale), set8(minimum)));
    store8(high + i, fma8(load8(codes + 16 + i), set8(scale), set8(minimum)));
  }
}

#endif

inline uint16_t half_below(float value) {
  const float bounded = value < -65504.0f ? -65504.0f : value > 65504.0f ? 65504.0f : value;
  f16 half{f16_bits(bounded)};
  if (to_float(half) > bounded) half.bits = static_cast<uint16_t>((half.bits & 0x7fff) == 0 ? 0x8001 : half.bits & 0x8000 ? half.bits + 1 : half.bits - 1);
  return half.bits;
}

inline uint16_t half_above(float value) {  // not negative
  f16 half{f16_bits(value > 65504.0f ? 65504.0f : value)};
  if (to_float(half) < value && half.bits < 0x7bff) ++half.bits;
  return half.bits;
}

// 32 values; one that is no number makes all of them NaN.
template <int kBits>
inline void encode_record(const float* x, KiviRecord<kBits>* record) {
  float low = x[0], high = x[0];
  bool is_number = true;
  for (int i = 0; i < kKiviTokens; ++i) {
    is_number = is_number && (bits_of(x[i]) & 0x7fffffffu) < 0x7f800000u;
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  constexpr int kTop = (1 << kBits) - 1, kBytes = 4 * kBits;
  const uint16_t minimum = is_number ? half_below(low) : 0x7e00;
  const float floor = to_float(f16{minimum});
  const uint16_t scale = is_number ? half_above((high - floor) / kTop) : 0;
  const float step = to_float(f16{scale}), inverse = is_number && step > 0.0f ? 1.0f / step : 0.0f;
  __builtin_memcpy(record->bytes, &scale, 2);
  __builtin_memcpy(record->bytes + 2, &minimum, 2);
  __builtin_memset(record->bytes + 4, 0, kBytes);
  if (!is_number) return;
  for (int i = 0; i < kKiviTokens; ++i) {
    const float code = __builtin_rintf((x[i] - floor) * inverse);
    const int bounded = code > kTop ? kTop : code < 0.0f ? 0 : static_cast<int>(code);
    uint8_t& byte = record->bytes[4 + i * kBits / 8];
    byte = static_cast<uint8_t>(byte | bounded << (i * kBits % 8));
  }
}

}  // namespace ZG_ISA
}  // namespace zg
