// The two products of prefill in float32: scores = K q and sums += V' p, both with the queries along the lanes, so that
// neither keys nor values need a transpose and the softmax works lane by lane. Any instruction set, any cache type.
#pragma once

#include "attention/attention_plan.h"
#include "attention/attention_rows.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr int kStrip = 2 * kLanes;  // queries in a strip

// c[m][lane] (+)= sum over k of a[m * row + k * column] * b[k][lane], over whole tiles of `tile` rows. b, c: strips.
template <bool add, int tile>
static inline void multiply(const float* a, long row, long column, const float* b, long depth, float* c, long rows) {
  for (long m = 0; m < rows; m += tile) {
    F acc[tile][2];
    for (int i = 0; i < tile; ++i) {
      for (int j = 0; j < 2; ++j)
        acc[i][j] = add ? load(c + (m + i) * kStrip + j * kLanes) : broadcast(0.0f);
    }
    const float* from = a + m * row;
    for (long k = 0; k < depth; ++k, from += column) {
      const F x = load(b + k * kStrip), y = load(b + k * kStrip + kLanes);
      for (int i = 0; i < tile; ++i) {
        const F w = broadcast(from[i * row]);
        acc[i][0] = fma(w, x, acc[i][0]);
        acc[i][1] = fma(w, y, acc[i][1]);
      }
    }
    for (int i = 0; i < tile; ++i)
      for (int j = 0; j < 2; ++j) store(c + (m + i) * kStrip + j * kLanes, acc[i][j]);
  }
}

// `count` cache rows to float32 [kKeyBlock, padded]; what is past them, either way, becomes zero.
template <class T>
static inline void widen_rows(const T* rows, const uint16_t* scales, long count, long dim, long padded, float* to) {
  for (long i = 0; i < kKeyBlock; ++i, to += padded) {
    const F scale = broadcast(sizeof(T) == 1 && i < count ? f16_to_float(scales[i]) : 1.0f);
    for (long d = 0; d < padded; d += kLanes) {
      F x = broadcast(0.0f);
      if (i < count && d < dim) x = load_some(rows + i * dim + d, dim - d);
      if (sizeof(T) == 1) x *= scale;
      store(to + d, x);
    }
  }
}

class FloatProducts {
 public:
  static constexpr long kStep = 8;  // granularity of the number of keys
#if defined(__AVX512F__) || defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kTile = 8;
#else
  static constexpr int kTile = 4;
#endif

  explicit FloatProducts(long padded_dim) : dim_(padded_dim) {}

  // kLanes queries [kLanes, padded_dim] into the half of a strip that begins at `lane`.
  void put_queries(const float* queries, float* strip, long lane) const {
    for (long d = 0; d < dim_; d += kLanes) transpose(queries + d, dim_, strip + d * kStrip + lane, kStrip);
  }
  template <class T>
  void put_keys(const T* rows, const uint16_t* scales, long count, long dim, float* keys) const {
    widen_rows(rows, scales, count, dim, dim_, keys);
  }
  template <class T>
  void put_values(const T* rows, const uint16_t* scales, long count, long dim, float* values) const {
    widen_rows(rows, scales, count, dim, dim_, values);
  }
  // scores [count, kStrip]; count is a multiple of kStep.
  void score(const float* keys, const float* strip, long count, float* scores) const {
    multiply<false, kTile>(keys, dim_, 1, strip, dim_, scores, count);
  }
  // Probabilities of two neighbouring keys for the lanes at `lane`.
  static void put_probabilities(float* probabilities, long key, long lane, F first, F second) {
    store(probabilities + key * kStrip + lane, first);
    store(probabilities + (key + 1) * kStrip + lane, second);
  }
  // sums [padded_dim, kStrip] += values' . probabilities
  void weigh(const float* values, const float* probabilities, long count, float* sums) const {
    multiply<true, kTile>(values, 1, dim_, probabilities, count, sums, dim_);
  }

 private:
  long dim_;
};

}  // namespace edgellama::EDGELLAMA_ISA
