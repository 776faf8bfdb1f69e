// SPDX-License-Identifier: Apache-2.0
// Entries of the KV pool: one head's key or value of one token. Plain numbers, or ggml's blocks of 32 values that share a scale:
//
//   q8_0  scale fp16 | 32 x int8                 value = scale * q
//   q4_0  scale fp16 | 16 bytes, low nibbles 0 .. 15, high ones 16 .. 31     value = scale * (q - 8)
//
// An entry is quantized when it is written and by its own values alone, so neither neighbours nor chunks can change a bit of it.
#pragma once
#include "kernels/qlinear/quantize.h"
#include "kernels/vec.h"

namespace zg {
namespace ZG_ISA {

struct KVQ8 { uint8_t bytes[34]; };
struct KVQ4 { uint8_t bytes[18]; };

template <typename T> constexpr int64_t kEntryValues = 1;  // values that one T holds
template <> constexpr int64_t kEntryValues<KVQ8> = kGroup;
template <> constexpr int64_t kEntryValues<KVQ4> = kGroup;

inline float entry_scale(const uint8_t* block) {
  f16 scale;
  __builtin_memcpy(&scale, block, 2);
  return to_float(scale);
}

#if ZG_ISA_avx2
inline vec8 widen_bytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
inline __m128i load_bytes8(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
#endif

// fp32 of a whole entry of d values.
template <typename T>
inline void expand_entry(const T* entry, int64_t d, float* out) {
  for (int64_t i = 0; i < d; i += 8) store8(out + i, load8(entry + i));
}

inline void expand_entry(const KVQ8* entry, int64_t d, float* out) {
  for (int64_t group = 0; group < d; group += kGroup, ++entry) {
    const float scale = entry_scale(entry->bytes);
    for (int i = 0; i < kGroup; i += 8) {
#if ZG_ISA_avx2
      store8(out + group + i, mul8(set8(scale), widen_bytes(load_bytes8(entry->bytes + 2 + i))));
#else
      for (int j = i; j < i + 8; ++j) out[group + j] = scale * static_cast<float>(static_cast<int8_t>(entry->bytes[2 + j]));
#endif
    }
  }
}

inline void expand_entry(const KVQ4* entry, int64_t d, float* out) {
  for (int64_t group = 0; group < d; group += kGroup, ++entry) {
    const float scale = entry_scale(entry->bytes);
    for (int i = 0; i < kGroup / 2; i += 8) {
#if ZG_ISA_avx2
      const __m128i bytes = load_bytes8(entry->bytes + 2 + i), nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
      const __m128i low = _mm_sub_epi8(_mm_and_si128(bytes, nibble), eight);
      const __m128i high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), eight);
      store8(out + group + i, mul8(set8(scale), widen_bytes(low)));
      store8(out + group + kGroup / 2 + i, mul8(set8(scale), widen_bytes(high)));
#else
      for (int j = i; j < i + 8; ++j) {
        const int byte = entry->bytes[2 + j];
        out[group + j] = scale * static_cast<float>((byte & 15) - 8);
        out[group + kGroup / 2 + j] = scale * static_cast<float>((byte >> 4) - 8);
      }
#endif
    }
  }
}

template <typename T>
inline void write_entry(T* entry, const float* from, int64_t d) {
  for (int64_t i = 0; i < d; ++i) store1(entry + i, from[i]);
}

inline void write_entry(float* entry, const float* from, int64_t d) {
  for (int64_t i = 0; i < d; i += 8) store8(entry + i, load8(from + i));  // head sizes are multiples of eight
}

inline void write_entry(KVQ8* entry, const float* from, int64_t d) {
  for (int64_t group = 0; group < d; group += kGroup, ++entry) {
    ActivationGroup values;
    quantize_group(from + group, &values);
    const uint16_t scale = f16_bits(values.scale);
    __builtin_memcpy(entry->bytes, &scale, 2);
    __builtin_memcpy(entry->bytes + 2, values.values, kGroup);
  }
}

// As ggml does: the value of largest magnitude becomes -8 exactly, so the grid is open on its side.
inline void write_entry(KVQ4* entry, const float* from, int64_t d) {
  for (int64_t group = 0; group < d; group += kGroup, ++entry, from += kGroup) {
    const uint32_t bits = peak_bits(from);
    const float peak = float_of(bits);
    float extreme = 0.0f;
    for (int i = 0; i < kGroup; ++i)
      if (__builtin_fabsf(from[i]) == peak && extreme == 0.0f) extreme = from[i];
    const bool is_number = bits < 0x7f800000u, is_zero = !is_number || peak < kSmallest;
    const float inverse = is_zero ? 0.0f : -8.0f / extreme;
    const uint16_t scale = f16_bits(is_number ? (is_zero ? 0.0f : extreme / -8.0f) : __builtin_nanf(""));
    __builtin_memcpy(entry->bytes, &scale, 2);
    for (int i = 0; i < kGroup / 2; ++i) {
      const auto nibble = [&](float x) {
        const int q = is_zero ? 8 : static_cast<int>(x * inverse + 8.5f);
        return static_cast<uint8_t>(q > 15 ? 15 : q);
      };
      entry->bytes[2 + i] = static_cast<uint8_t>(nibble(from[i]) | nibble(from[i + kGroup / 2]) << 4);
    }
  }
}

}  // namespace ZG_ISA
}  // namespace zg
