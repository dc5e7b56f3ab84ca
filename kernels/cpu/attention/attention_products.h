// The two products of prefill in float32: scores = K q and sums += V' p, for every instruction set and cache type. Both
// have the queries along the lanes, so neither keys nor values need a transpose, and the softmax works lane by lane.
#pragma once

#include "attention/attention_plan.h"
#include "attention/attention_rows.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr int kStrip = 2 * kLanes;  // queries in a strip

// c[m][lane] = or, with `add`, += the sum over k of a[m * row + k * column] * b[k][lane], in whole tiles of `tile`
// rows. b and c are strips: kStrip floats for each row.
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

// Widens `count` cache rows to float32 [kKeyBlock, padded]. The other rows and columns become zero.
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

// The interface that prefill_block needs; TileProducts (attention_amx.h) is the other implementation.
class FloatProducts {
 public:
  static constexpr long kStep = 8;  // score() and weigh() take a number of keys that is a multiple of this
#if defined(__AVX512F__) || defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kTile = 8;
#else
  static constexpr int kTile = 4;
#endif

  explicit FloatProducts(long padded_dim) : dim_(padded_dim) {}

  // Writes kLanes queries [kLanes, padded_dim] to the half of a strip that begins at `lane`.
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
  // Writes the probabilities of keys `key` and `key` + 1 for the lanes at `lane`.
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
