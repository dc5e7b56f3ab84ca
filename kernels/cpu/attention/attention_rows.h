// The rotary embedding, and writing a row of keys or values to a cache of each type.
#pragma once

#include "attention/attention.h"
#include "attention/attention_simd.h"

namespace edgellama::EDGELLAMA_ISA {

// The cache of one (row, group).
template <class T>
struct CacheView {
  T *keys, *values;               // [C, D]
  uint16_t *key_scale, *value_scale;  // [C], or null
  CacheView(const AttentionArgs& a, long row, long group) {
    const long at = (row * a.groups + group) * a.capacity;
    keys = static_cast<T*>(a.k_cache) + at * a.head_dim;
    values = static_cast<T*>(a.v_cache) + at * a.head_dim;
    key_scale = a.k_scale ? a.k_scale + at : nullptr;
    value_scale = a.v_scale ? a.v_scale + at : nullptr;
  }
  uint16_t* key_scale_at(long position) const { return key_scale ? key_scale + position : nullptr; }
  uint16_t* value_scale_at(long position) const { return value_scale ? value_scale + position : nullptr; }
};

// The D floats of one head in qkv. Heads H .. H+G-1 are the keys, heads H+G .. H+2G-1 the values.
static inline const float* qkv_head(const AttentionArgs& a, long row, long token, long head) {
  return a.qkv + ((row * a.tokens + token) * (a.heads + 2L * a.groups) + head) * a.head_dim;
}

// Stores the first n floats of x, at most kLanes.
static inline void store_some(float* p, F x, long n) {
  if (n >= kLanes) return store(p, x);
  float lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, size_t(n) * sizeof *p);
}

// y [D] = x [D] rotated to `position` (arXiv:2104.09864, half-split layout: element i pairs with i + D/2).
// attention.cpp is compiled without contraction into fused multiply-adds, so the cache receives the same bits as the
// reference.
static inline void rotate(const AttentionArgs& a, const float* x, long position, float* y) {
  const long half = a.head_dim / 2;
  const float *cos = a.cos + position * half, *sin = a.sin + position * half;
  for (long i = 0; i < half; i += kLanes) {
    const long n = half - i;
    const F lo = load_some(x + i, n), hi = load_some(x + half + i, n);
    const F c = load_some(cos + i, n), s = load_some(sin + i, n);
    store_some(y + i, lo * c - hi * s, n);
    store_some(y + half + i, hi * c + lo * s, n);
  }
}

// 1 / sqrt(mean(x^2) + eps) of n floats.
static inline float inverse_rms(const float* x, long n, float eps) {
  F squares = broadcast(0.0f);
  for (long i = 0; i < n; i += kLanes) {
    const F some = load_some(x + i, n - i);
    squares = fma(some, some, squares);
  }
  return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + eps);
}

// y [n] = x [n] * factor * gamma [n]
static inline void scale_by(const float* x, float factor, const float* gamma, long n, float* y) {
  for (long i = 0; i < n; i += kLanes)
    store_some(y + i, load_some(x + i, n - i) * factor * load_some(gamma + i, n - i), n - i);
}

// y [D] = a query head or a key head of qkv, as attention uses it: normalised, if the model does so, and rotated.
static inline void turned_head(const AttentionArgs& a, long row, long token, long head, long position, float* y) {
  const float* x = qkv_head(a, row, token, head);
  const long first = head < a.heads ? 0 : a.heads, count = head < a.heads ? a.heads : a.groups;
  const float* gamma = head < a.heads ? a.q_gamma : a.k_gamma;
  switch (a.norm) {
    case HeadNorm::none: return rotate(a, x, position, y);
    case HeadNorm::each: scale_by(x, inverse_rms(x, a.head_dim, a.norm_eps), gamma, a.head_dim, y); break;
    case HeadNorm::whole: {
      const float factor = inverse_rms(qkv_head(a, row, token, first), count * a.head_dim, a.norm_eps);
      scale_by(x, factor, gamma + (head - first) * a.head_dim, a.head_dim, y);
      break;
    }
    case HeadNorm::after_rope:
      rotate(a, x, position, y);
      return scale_by(y, inverse_rms(y, a.head_dim, a.norm_eps), gamma, a.head_dim, y);
  }
  rotate(a, y, position, y);
}

// What a query at this position is multiplied by: its scores are in units of log2.
static inline float query_factor(const AttentionArgs& a, long position) {
  float factor = a.scale * 1.44269504f;
  if (a.query_beta != 0.0f)
    factor *= 1.0f + a.query_beta * __builtin_logf(1.0f + static_cast<float>(position / a.query_period));
  return factor;
}

// Replaces n scores by cap * tanh(score / cap), rounded up to whole vectors. Scores and cap are in units of log2.
static inline void cap_scores(float* scores, long n, float cap) {
  const F twice = broadcast(2.0f / cap), one = broadcast(1.0f);
  for (long i = 0; i < n; i += kLanes)
    store(scores + i, (one - broadcast(2.0f) / (exp(load(scores + i) * twice) + one)) * cap);
}

// Writes one row of D floats to a cache. Only the int8 type has a scale.
static inline void write_row(const float* x, long dim, float* row, uint16_t*) {
  std::memcpy(row, x, size_t(dim) * sizeof *x);
}

static inline void write_row(const float* x, long dim, uint16_t* row, uint16_t*) {
  long i = 0;
  for (; i + kLanes <= dim; i += kLanes) store_f16(row + i, load(x + i));
  for (; i < dim; ++i) row[i] = float_to_f16(x[i]);
}

constexpr uint16_t kNaN16 = 0x7e00;  // the bits of float16's NaN

// int8: scale = the largest magnitude / 127 in float16. Elements are x / scale, rounded to the nearest integer (ties to
// even) and clipped to -127..127. If an element is not finite, the scale is NaN and the elements are 0.
static inline void write_row(const float* x, long dim, int8_t* row, uint16_t* scale) {
  F largest = broadcast(0.0f);
  for (long i = 0; i < dim; i += kLanes) {
    largest = larger_magnitude(largest, load_some(x + i, dim - i));
  }
  const float magnitude = largest_magnitude(largest);
  if (!is_finite(magnitude)) {
    *scale = kNaN16;
    std::memset(row, 0, size_t(dim));
    return;
  }
  const float wanted = magnitude / 127.0f;
  *scale = float_to_f16(wanted < 65504.0f ? wanted : 65504.0f);
  const float step = f16_to_float(*scale);
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  for (long i = 0; i < dim; i += kLanes) {
    const long n = dim - i < kLanes ? dim - i : kLanes;
    F q = broadcast(0.0f);
    if (step > 0.0f) q = min(max(load_some(x + i, n) / step, broadcast(-127.0f)), broadcast(127.0f));
    float lanes[kLanes];
    store(lanes, (q + magic) - magic);
    for (long j = 0; j < n; ++j) row[i + j] = static_cast<int8_t>(lanes[j]);
  }
}

// Writes key and value of one token at `position` of its (row, group): the key rotated, both rounded to the cache's
// type. `turned` has room for D floats.
template <class T>
static inline void write_position(const AttentionArgs& a, long row, long token, long group, long position,
                                  float* turned) {
  const CacheView<T> cache(a, row, group);
  const long at = position * a.head_dim;
  turned_head(a, row, token, a.heads + group, position, turned);
  write_row(turned, a.head_dim, cache.keys + at, cache.key_scale_at(position));
  write_row(qkv_head(a, row, token, a.heads + a.groups + group), a.head_dim, cache.values + at,
            cache.value_scale_at(position));
}

}  // namespace edgellama::EDGELLAMA_ISA
