// The vector functions that only attention needs, in addition to simd.h.
#pragma once

#include "simd/simd.h"

namespace edgellama::EDGELLAMA_ISA {

// Elements of a cache as floats. The overloads are the storage types: float32, float16, int8.
static inline F load_row(const float* p) { return load(p); }
static inline F load_row(const uint16_t* p) { return load_f16(p); }
static inline F load_row(const int8_t* p) { return load_s8(p); }
static inline float element(float x) { return x; }
static inline float element(uint16_t x) { return f16_to_float(x); }
static inline float element(int8_t x) { return x; }

// The first n < kLanes elements, then zeros. Reads no element past them.
template <class T>
static inline F load_tail(const T* p, long n) {
  float lanes[kLanes] = {};
  for (long i = 0; i < n; ++i) lanes[i] = element(p[i]);
  return load(lanes);
}

template <class T>
static inline F load_some(const T* p, long n) {
  return n >= kLanes ? load_row(p) : load_tail(p, n);
}

// x in the lanes where the mask is set, y in the others.
static inline F choose(I mask, F x, F y) { return mask ? x : y; }

static inline bool all_lanes(I mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#else
  bool all = true;
  for (int i = 0; i < kLanes; ++i) all &= mask[i] != 0;
  return all;
#endif
}

// 2^x for x <= 0, with a relative error of 1e-7: exactly 1 at 0, and exactly 0 below -126 (-infinity included). A NaN
// stays a NaN, so that a NaN in the cache reaches the output.
// The polynomial is the minimax approximation of 2^(x - floor(x)) on [0, 1].
static inline F exp2_of_negative(F x) {
#if defined(__AVX512F__)
  const F f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  const F clipped = max(broadcast(-127.0f), x);  // of a NaN and a number, x86 takes the second
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const F shifted = (clipped - 0.5f) + magic;
  const F f = clipped - (shifted - magic);
#endif
  F p = broadcast(1.8671300e-3f);
  p = fma(p, f, broadcast(9.0170307e-3f));
  p = fma(p, f, broadcast(5.5799913e-2f));
  p = fma(p, f, broadcast(2.4016444e-1f));
  p = fma(p, f, broadcast(6.9315130e-1f));
  p = fma(p, f, broadcast(1.0f));
#if defined(__AVX512F__)
  // p * 2^floor(x). The mask clears lanes that would underflow, because such a vector costs a microcode assist.
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, broadcast(-126.0f), _CMP_NLT_UQ), p, x);
#else
  const I exponent = ((I)shifted + 127) << 23;  // the shift drops the upper bits, which come from `magic`
  return choose(x < -126.0f, broadcast(0.0f), p * (F)exponent);
#endif
}

// Writes the sums of the lanes of four vectors to out[0..3].
static inline void sum4(F a, F b, F c, F d, float* out) {
#if defined(__AVX512F__)
  const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
  const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
  const __m512 x = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
  const __m256 y = _mm512_castps512_ps256(x) + _mm512_extractf32x8_ps(x, 1);
  _mm_storeu_ps(out, _mm256_castps256_ps128(y) + _mm256_extractf128_ps(y, 1));
#elif defined(__AVX2__)
  const __m256 y = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm256_castps256_ps128(y) + _mm256_extractf128_ps(y, 1));
#elif defined(__ARM_FEATURE_DOTPROD)
  vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
#else
  out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
#endif
}

#if defined(__AVX512F__)
// Transposes sixteen vectors of sixteen 32-bit elements.
static inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
    t[i] = _mm512_unpacklo_epi64(a, c), t[i + 1] = _mm512_unpackhi_epi64(a, c);
    t[i + 2] = _mm512_unpacklo_epi64(b, d), t[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
    r[i] = _mm512_shuffle_i32x4(a, c, 0x88), r[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88), r[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}
#endif

// to[j][i] = from[i][j] for a square of kLanes x kLanes elements. Strides are in elements.
static inline void transpose(const float* from, long from_stride, float* to, long to_stride) {
#if defined(__AVX512F__)
  __m512i r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_stride);
  transpose(r);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_stride, r[i]);
#else
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) to[j * to_stride + i] = from[i * from_stride + j];
#endif
}

}  // namespace edgellama::EDGELLAMA_ISA
