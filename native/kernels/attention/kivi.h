// SPDX-License-Identifier: Apache-2.0
// KIVI (Liu et al., arXiv 2402.02750): records of 32 values of B bits that share a scale and a minimum, keys along tokens, values along
// channels. A block of 32 tokens is packed when it is full; until then it lies in plain numbers in the sequence's tail block.
//
//   record  scale fp16 | minimum fp16 | 4 B bytes of codes          value = code * scale + minimum
//   codes   B = 4: byte i has value i below and i + 16 above        B = 2: byte i has the values i, i + 8, i + 16, i + 24 from below
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

inline float half_at(const uint8_t* from) { return entry_scale(from); }

template <int kBits>
inline void decode_record(const KiviRecord<kBits>* record, float* out) {
  const float scale = half_at(record->bytes), minimum = half_at(record->bytes + 2);
  const uint8_t* codes = record->bytes + 4;
  constexpr int kPerByte = 8 / kBits, kBytes = 4 * kBits, kMask = (1 << kBits) - 1;
  for (int part = 0; part < kPerByte; ++part) {
    for (int i = 0; i < kBytes; i += 8) {
#if ZG_ISA_avx2
      const __m128i bytes = _mm_and_si128(_mm_srli_epi16(load_bytes8(codes + i), part * kBits), _mm_set1_epi8(kMask));
      store8(out + part * kBytes + i, fma8(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), set8(scale), set8(minimum)));
#else
      for (int j = i; j < i + 8; ++j)
        out[part * kBytes + j] = fma1(static_cast<float>((codes[j] >> (part * kBits)) & kMask), scale, minimum);
#endif
    }
  }
}

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
    record->bytes[4 + i % kBytes] = static_cast<uint8_t>(record->bytes[4 + i % kBytes] | bounded << (i / kBytes * kBits));
  }
}

}  // namespace ZG_ISA
}  // namespace zg
