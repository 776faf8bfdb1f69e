// SPDX-License-Identifier: Apache-2.0
// Eight floats at a time, in two spellings: AVX2 with FMA and F16C, and portable C++; and sixteen, a panel's width, in one register
// of AVX-512 or in two of eight. A kernel is written once against this. AVX2 and AVX-512 give the same bits: each element has its
// own chain of the same multiply-adds, whichever register it travels in.
//
// This header is compiled once per instruction set, in that set's own namespace, and uses no inline function of the standard
// library: the linker keeps one copy of those, and it might be the copy that needs AVX2.
#pragma once
#include <cstdint>

#include "kernels/table.h"

#if ZG_ISA_avx512vnni
#define ZG_ISA_avx512 1
#endif
#if ZG_ISA_avx512
#define ZG_ISA_avx2 1  // what has sixteen lanes has eight as well
#endif
#if ZG_ISA_avx2
#include <immintrin.h>
#endif

namespace zg {
namespace ZG_ISA {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline float to_float(float value) { return value; }
inline float to_float(bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

// Round to nearest even; a NaN stays a NaN.
inline uint16_t bf16_bits(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if ZG_ISA_avx2

using vec8 = __m256;

inline vec8 zero8() { return _mm256_setzero_ps(); }
inline vec8 set8(float value) { return _mm256_set1_ps(value); }
inline vec8 load8(const float* p) { return _mm256_loadu_ps(p); }
inline vec8 load8(const bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline vec8 load8(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store8(float* p, vec8 v) { _mm256_storeu_ps(p, v); }
inline vec8 add8(vec8 a, vec8 b) { return _mm256_add_ps(a, b); }
inline vec8 sub8(vec8 a, vec8 b) { return _mm256_sub_ps(a, b); }
inline vec8 mul8(vec8 a, vec8 b) { return _mm256_mul_ps(a, b); }
inline vec8 div8(vec8 a, vec8 b) { return _mm256_div_ps(a, b); }
inline vec8 fma8(vec8 a, vec8 b, vec8 c) { return _mm256_fmadd_ps(a, b, c); }
inline float fma1(float a, float b, float c) { return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c))); }
inline float sqrt1(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }

// The sum of eight lanes, always in this order: (0+4, 1+5, 2+6, 3+7), (0+2, 1+3), 0+1.
inline float sum8(vec8 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// Lane i of the result is the sum of v[i], by the same tree for every lane.
inline vec8 sums8(const vec8 v[8]) {
  const vec8 ab = _mm256_hadd_ps(v[0], v[1]), cd = _mm256_hadd_ps(v[2], v[3]);
  const vec8 ef = _mm256_hadd_ps(v[4], v[5]), gh = _mm256_hadd_ps(v[6], v[7]);
  const vec8 abcd = _mm256_hadd_ps(ab, cd), efgh = _mm256_hadd_ps(ef, gh);
  return _mm256_add_ps(_mm256_permute2f128_ps(abcd, efgh, 0x20), _mm256_permute2f128_ps(abcd, efgh, 0x31));
}

// The larger one; NaN if either is NaN.
inline vec8 max8(vec8 a, vec8 b) { return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }

inline float maximum8(vec8 v) {
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < 8; ++i) best = (lanes[i] > best || lanes[i] != lanes[i]) ? lanes[i] : best;
  return best;
}

// Lanes [first, last) of v, `other` elsewhere.
inline vec8 keep8(vec8 v, int first, int last, float other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i outside = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                          _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(last - 1)));
  return _mm256_blendv_ps(v, _mm256_set1_ps(other), _mm256_castsi256_ps(outside));
}

inline vec8 round8(vec8 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for integral n in [-126, 127].
inline vec8 exp2i8(vec8 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline vec8 below8(vec8 v, float limit, vec8 yes, vec8 no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(v, _mm256_set1_ps(limit), _CMP_LT_OQ));
}
inline vec8 nan_or8(vec8 v, vec8 other) { return _mm256_blendv_ps(other, v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)); }

inline float to_float(f16 value) { return _cvtsh_ss(value.bits); }
inline uint16_t f16_bits(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

#else  // portable

struct vec8 { float lane[8]; };

#define ZG_LANES(expression) vec8 r; for (int i = 0; i < 8; ++i) r.lane[i] = (expression); return r

inline float to_float(f16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 31u, fraction = value.bits & 1023u;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

inline uint16_t f16_bits(float value) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Adding 1/2 puts the subnormal's bits, correctly rounded, at the bottom of the fraction.
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

inline vec8 set8(float value) { ZG_LANES(value); }
inline vec8 zero8() { return set8(0.0f); }
template <typename T> inline vec8 load8(const T* p) { ZG_LANES(to_float(p[i])); }
inline void store8(float* p, vec8 v) { for (int i = 0; i < 8; ++i) p[i] = v.lane[i]; }
inline vec8 add8(vec8 a, vec8 b) { ZG_LANES(a.lane[i] + b.lane[i]); }
inline vec8 sub8(vec8 a, vec8 b) { ZG_LANES(a.lane[i] - b.lane[i]); }
inline vec8 mul8(vec8 a, vec8 b) { ZG_LANES(a.lane[i] * b.lane[i]); }
inline vec8 div8(vec8 a, vec8 b) { ZG_LANES(a.lane[i] / b.lane[i]); }
// Two roundings: without the instruction a fused multiply-add is a library call.
inline vec8 fma8(vec8 a, vec8 b, vec8 c) { ZG_LANES(a.lane[i] * b.lane[i] + c.lane[i]); }
inline float fma1(float a, float b, float c) { return a * b + c; }
inline float sqrt1(float a) { return __builtin_sqrtf(a); }
inline float sum8(vec8 v) {
  const float* a = v.lane;
  return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
inline vec8 sums8(const vec8 v[8]) { ZG_LANES(sum8(v[i])); }
inline vec8 max8(vec8 a, vec8 b) { ZG_LANES((a.lane[i] > b.lane[i] || a.lane[i] != a.lane[i]) ? a.lane[i] : b.lane[i]); }
inline float maximum8(vec8 v) {
  float best = v.lane[0];
  for (int i = 1; i < 8; ++i) best = (v.lane[i] > best || v.lane[i] != v.lane[i]) ? v.lane[i] : best;
  return best;
}
inline vec8 keep8(vec8 v, int first, int last, float other) { ZG_LANES((i >= first && i < last) ? v.lane[i] : other); }
inline vec8 round8(vec8 v) { ZG_LANES(__builtin_rintf(v.lane[i])); }
inline vec8 exp2i8(vec8 n) { ZG_LANES(float_of(static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23)); }
inline vec8 below8(vec8 v, float limit, vec8 yes, vec8 no) { ZG_LANES(v.lane[i] < limit ? yes.lane[i] : no.lane[i]); }
inline vec8 nan_or8(vec8 v, vec8 other) { ZG_LANES(v.lane[i] != v.lane[i] ? v.lane[i] : other.lane[i]); }

#undef ZG_LANES

#endif

#if ZG_ISA_avx512

using vec16 = __m512;

inline vec16 zero16() { return _mm512_setzero_ps(); }
inline vec16 set16(float value) { return _mm512_set1_ps(value); }
inline vec16 load16(const float* p) { return _mm512_loadu_ps(p); }
inline vec16 load16(const bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline vec16 load16(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline vec16 fma16(vec16 a, vec16 b, vec16 c) { return _mm512_fmadd_ps(a, b, c); }
inline vec16 mul16(vec16 a, vec16 b) { return _mm512_mul_ps(a, b); }
inline vec16 sub16(vec16 a, vec16 b) { return _mm512_sub_ps(a, b); }
inline void store16(float* p, vec16 v) { _mm512_storeu_ps(p, v); }
inline vec8 low8(vec16 v) { return _mm512_castps512_ps256(v); }
inline vec8 high8(vec16 v) { return _mm512_extractf32x8_ps(v, 1); }

#else

struct vec16 { vec8 low, high; };

inline vec16 zero16() { return {zero8(), zero8()}; }
inline vec16 set16(float value) { return {set8(value), set8(value)}; }
template <typename T> inline vec16 load16(const T* p) { return {load8(p), load8(p + 8)}; }
inline vec16 fma16(vec16 a, vec16 b, vec16 c) { return {fma8(a.low, b.low, c.low), fma8(a.high, b.high, c.high)}; }
inline vec16 sub16(vec16 a, vec16 b) { return {sub8(a.low, b.low), sub8(a.high, b.high)}; }
inline vec16 mul16(vec16 a, vec16 b) { return {mul8(a.low, b.low), mul8(a.high, b.high)}; }
inline void store16(float* p, vec16 v) { store8(p, v.low), store8(p + 8, v.high); }
inline vec8 low8(vec16 v) { return v.low; }
inline vec8 high8(vec16 v) { return v.high; }

#endif

inline void store1(float* p, float value) { *p = value; }
inline void store1(bf16* p, float value) { p->bits = bf16_bits(value); }
inline void store1(f16* p, float value) { p->bits = f16_bits(value); }

// The first `count` (< 8) lanes; the rest of the load is zero and the rest of memory stays untouched.
template <typename T> inline vec8 load_some8(const T* p, int64_t count) {
  float lanes[8] = {0};
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(p[i]);
  return load8(lanes);
}
inline void store_some8(float* p, vec8 v, int64_t count) {
  float lanes[8];
  store8(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// e^x with a relative error below 2e-7; 0 below -87, infinity above 88.72, NaN for NaN.
// Range reduction x = n ln 2 + r (ln 2 in two parts), then Cephes' polynomial of degree 6 (expf, Moshier).
inline vec8 exp8(vec8 x) {
  const vec8 low = below8(x, -87.0f, set8(-87.0f), x);
  const vec8 safe = below8(low, 88.72f, low, set8(88.72f));
  const vec8 n = round8(mul8(safe, set8(1.44269504088896341f)));
  vec8 r = fma8(n, set8(-0.693359375f), safe);
  r = fma8(n, set8(2.12194440e-4f), r);
  vec8 p = set8(1.9875691500e-4f);
  p = fma8(p, r, set8(1.3981999507e-3f));
  p = fma8(p, r, set8(8.3334519073e-3f));
  p = fma8(p, r, set8(4.1665795894e-2f));
  p = fma8(p, r, set8(1.6666665459e-1f));
  p = fma8(p, r, set8(5.0000001201e-1f));
  p = add8(fma8(p, mul8(r, r), r), set8(1.0f));
  // n reaches 128, whose power of two is no float: multiply in two steps.
  const vec8 half = round8(mul8(n, set8(0.5f)));
  vec8 result = mul8(mul8(p, exp2i8(half)), exp2i8(sub8(n, half)));
  result = below8(x, -87.0f, zero8(), result);
  result = below8(x, 88.72f, result, set8(__builtin_inff()));
  return nan_or8(x, result);
}

#if ZG_ISA_avx512

// The same polynomial on sixteen lanes; the scaling by a power of two is one instruction.
inline vec16 exp16(vec16 x) {
  const vec16 safe = _mm512_min_ps(_mm512_max_ps(x, set16(-87.0f)), set16(88.72f));
  const vec16 n = _mm512_roundscale_ps(mul16(safe, set16(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  vec16 r = fma16(n, set16(-0.693359375f), safe);
  r = fma16(n, set16(2.12194440e-4f), r);
  vec16 p = set16(1.9875691500e-4f);
  p = fma16(p, r, set16(1.3981999507e-3f));
  p = fma16(p, r, set16(8.3334519073e-3f));
  p = fma16(p, r, set16(4.1665795894e-2f));
  p = fma16(p, r, set16(1.6666665459e-1f));
  p = fma16(p, r, set16(5.0000001201e-1f));
  p = _mm512_add_ps(fma16(p, mul16(r, r), r), set16(1.0f));
  vec16 result = _mm512_scalef_ps(p, n);
  result = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set16(-87.0f), _CMP_NLT_UQ), result);
  result = _mm512_mask_mov_ps(result, _mm512_cmp_ps_mask(x, set16(88.72f), _CMP_NLT_UQ), set16(__builtin_inff()));
  return _mm512_mask_mov_ps(result, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

#else

inline vec16 exp16(vec16 x) { return {exp8(x.low), exp8(x.high)}; }

#endif

// tanh x with a relative error below 3e-7, exactly odd; 1 with x's sign for infinity, NaN for NaN.
// Cephes' polynomial (tanhf, Moshier) up to 0.625, where the exponentials would cancel, 1 - 2 / (e^2|x| + 1) above.
inline vec8 tanh8(vec8 x) {
  const vec8 negative = sub8(zero8(), x), magnitude = max8(x, negative), square = mul8(x, x);
  vec8 p = set8(-5.70498872745e-3f);
  p = fma8(p, square, set8(2.06390887954e-2f));
  p = fma8(p, square, set8(-5.37397155531e-2f));
  p = fma8(p, square, set8(1.33314422036e-1f));
  p = fma8(p, square, set8(-3.33332819422e-1f));
  const vec8 small = fma8(mul8(p, square), x, x);
  const vec8 large = sub8(set8(1.0f), div8(set8(2.0f), add8(exp8(add8(magnitude, magnitude)), set8(1.0f))));
  return below8(magnitude, 0.625f, small, below8(x, 0.0f, sub8(zero8(), large), large));
}

// cap * tanh(x / cap), out of line: few models need it, and inner loops should not carry its code.
__attribute__((noinline)) inline vec8 soft_cap8(vec8 x, float cap) { return mul8(tanh8(div8(x, set8(cap))), set8(cap)); }

}  // namespace ZG_ISA
}  // namespace zg
