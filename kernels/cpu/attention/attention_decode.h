// Decode: attention of one token to a range of its row's cache. Reading the cache is the limit, so all query heads of a
// group share each read. Two passes: first the scores of the whole range, then the weighted sum of its values.
#pragma once

#include "attention/attention_plan.h"
#include "attention/attention_rows.h"

namespace edgellama::EDGELLAMA_ISA {

// Query heads that share one read of the cache: as many as fit in the registers.
constexpr int kHeads = 4;

// Positions that all passes over wide values process before the next positions.
constexpr long kValueBlock = 16;

// Bytes to prefetch ahead: far ahead into the second-level cache, because the hardware prefetcher stops at every page,
// and again shortly before use into the first, because the products cannot hide the latency of the second. Measured on
// one core with a KV cache in memory, relative to a plain read: 1.8 times the time without prefetch, 1.4 with the far
// one, 1.15 with both.
constexpr long kFar = 4096, kNear = 1024;

static inline void prefetch(const void* at, long bytes) {
  const char* from = static_cast<const char*>(at);
  for (long byte = 0; byte < bytes; byte += kCacheLine) {
    __builtin_prefetch(from + byte + kFar, 0, 2);
    __builtin_prefetch(from + byte + kNear, 0, 3);
  }
}

// Keys or values of a range of positions of one (row, group), at most kMaxPart.
template <class T>
struct Part {
  const T* rows;           // at the first position
  const uint16_t* scales;  // at the first position, or null
  long count, dim, padded_dim;
};

// scores[h][i] = q[h] . keys[i], four keys at a time. q is [heads, padded_dim], scores [heads, stride].
template <int heads, class T>
static inline void dot_keys(const Part<T>& part, const float* q, float* scores, long stride) {
  const long dim = part.dim, whole = dim / kLanes * kLanes;
  for (long i = 0; i < part.count; i += 4) {
    const T* key[4];
    for (long j = 0; j < 4; ++j) key[j] = part.rows + (i + j < part.count ? i + j : part.count - 1) * dim;
    prefetch(key[0], 4 * dim * long(sizeof(T)));
    F sums[heads][4];
    for (int h = 0; h < heads; ++h)
      for (int j = 0; j < 4; ++j) sums[h][j] = broadcast(0.0f);
    for (long d = 0; d < whole; d += kLanes) {
      F x[4];
      for (int j = 0; j < 4; ++j) x[j] = load_row(key[j] + d);
      for (int h = 0; h < heads; ++h) {
        const F y = load(q + h * part.padded_dim + d);
        for (int j = 0; j < 4; ++j) sums[h][j] = fma(x[j], y, sums[h][j]);
      }
    }
    if (whole < dim) {
      for (int j = 0; j < 4; ++j) {
        const F x = load_tail(key[j] + whole, dim - whole);
        for (int h = 0; h < heads; ++h) sums[h][j] = fma(x, load(q + h * part.padded_dim + whole), sums[h][j]);
      }
    }
    for (int h = 0; h < heads; ++h) sum4(sums[h][0], sums[h][1], sums[h][2], sums[h][3], scores + h * stride + i);
  }
}

// sums[h][d ..] += weights[h] . values[first .. last-1][d ..], for `vectors` vectors from element d on. Starts from
// zero if first is 0. weights is [heads, stride].
template <int heads, int vectors, class T>
static inline void weigh_values(const Part<T>& part, long first, long last, const float* weights, long stride, long d,
                                float* sums, long sums_stride) {
  const long tail = vectors == 1 && part.dim - d < kLanes ? part.dim - d : 0;
  F acc[heads][vectors];
  for (int h = 0; h < heads; ++h) {
    for (int v = 0; v < vectors; ++v) {
      const float* from = sums + h * sums_stride + d + v * kLanes;
      acc[h][v] = first == 0 ? broadcast(0.0f) : tail ? load_tail(from, tail) : load(from);
    }
  }
  for (long i = first; i < last; ++i) {
    const T* value = part.rows + i * part.dim + d;
    prefetch(value, vectors * kLanes * long(sizeof(T)));
    F x[vectors];
    for (int v = 0; v < vectors; ++v) x[v] = tail ? load_tail(value, tail) : load_row(value + v * kLanes);
    for (int h = 0; h < heads; ++h) {
      const F w = broadcast(weights[h * stride + i]);
      for (int v = 0; v < vectors; ++v) acc[h][v] = fma(w, x[v], acc[h][v]);
    }
  }
  for (int h = 0; h < heads; ++h) {
    for (int v = 0; v < vectors; ++v) {
      float* to = sums + h * sums_stride + d + v * kLanes;
      tail ? store_some(to, acc[h][v], tail) : store(to, acc[h][v]);
    }
  }
}

// Multiplies the scores (or weights) by the int8 cache's scales. Does nothing for the other types.
template <class T>
static inline void scale_scores(const Part<T>& part, float* scores) {
  if (sizeof(T) != 1) return;
  for (long i = 0; i < part.count; i += kLanes)
    store(scores + i, load(scores + i) * load_some(part.scales + i, part.count - i));
}

// Replaces the scores by 2^(score - maximum), and returns their maximum and their new sum. Entries past count, up to a
// whole vector, become zero.
struct Softmax {
  float maximum, sum;
};
static inline Softmax exponentials(float* scores, long count) {
  const long whole = round_up(count, kLanes);
  for (long i = count; i < whole; ++i) scores[i] = -__builtin_inff();
  F most = load(scores);
  for (long i = kLanes; i < whole; i += kLanes) most = max(most, load(scores + i));
  const float maximum = max_lane(most);
  F total = broadcast(0.0f);
  for (long i = 0; i < whole; i += kLanes) {
    const F e = exp2_of_negative(load(scores + i) - maximum);
    store(scores + i, e);
    total += e;
  }
  return {maximum, sum(total)};
}

// Attention of `heads` query heads of one group to one part. Writes for each head, partial_stride floats apart: D sums,
// the maximum, the normaliser.
template <int heads, class T>
static inline void part_of_heads(const Part<T>& keys, const Part<T>& values, const float* q, float* scores,
                                 float softcap, float* partial, long partial_stride) {
  constexpr long stride = kMaxPart + kMaxStrip;
  const long dim = keys.dim;
  dot_keys<heads>(keys, q, scores, stride);
  for (int h = 0; h < heads; ++h) {
    float* row = scores + h * stride;
    scale_scores(keys, row);
    if (softcap != 0.0f) cap_scores(row, keys.count, softcap);
    const Softmax result = exponentials(row, keys.count);
    scale_scores(values, row);
    partial[h * partial_stride + dim] = result.maximum;
    partial[h * partial_stride + dim + 1] = result.sum;
  }
  // Wide rows take several passes. Process few positions at a time, so that only the first pass reads from memory.
  constexpr int vectors = 4;
  const long block = dim <= vectors * kLanes ? values.count : kValueBlock;
  for (long first = 0; first < values.count; first += block) {
    const long last = first + block < values.count ? first + block : values.count;
    long d = 0;
    for (; d + vectors * kLanes <= dim; d += vectors * kLanes)
      weigh_values<heads, vectors>(values, first, last, scores, stride, d, partial, partial_stride);
    for (; d < dim; d += kLanes)
      weigh_values<heads, 1>(values, first, last, scores, stride, d, partial, partial_stride);
  }
}

// Floats of decode_part's work: queries [H/G, padded_dim], scores, one row of D floats.
static inline long part_work(const ScratchLayout& layout, long share) {
  return share * layout.padded_dim + share * (kMaxPart + kMaxStrip) + 2 * layout.padded_dim;
}

// Attention of one token of a (row, group) to positions first .. last-1. If it is the row's only token and the part holds
// its position, writes that first. work: part_work() floats. partial: [H/G, partial_stride].
template <class T>
static void decode_part(const AttentionArgs& a, const ScratchLayout& layout, long row, long token, long group,
                        long first, long last, float* work, float* partial) {
  const long share = a.heads / a.groups, position = a.start[row] + token;
  float* q = work;
  float* scores = q + share * layout.padded_dim;
  float* turned = scores + share * (kMaxPart + kMaxStrip);
  if (a.length[row] == 1 && last > position) write_position<T>(a, row, token, group, position, turned);

  const float factor = query_factor(a, position);
  for (long h = 0; h < share; ++h) {
    float* y = q + h * layout.padded_dim;
    turned_head(a, row, token, group * share + h, position, y);
    for (long d = 0; d < a.head_dim; ++d) y[d] *= factor;
    for (long d = a.head_dim; d < layout.padded_dim; ++d) y[d] = 0.0f;
  }
  const CacheView<T> cache(a, row, group);
  const long count = last - first;
  const Part<T> keys{cache.keys + first * a.head_dim, cache.key_scale_at(first), count, a.head_dim, layout.padded_dim};
  const Part<T> values{cache.values + first * a.head_dim, cache.value_scale_at(first), count, a.head_dim,
                       layout.padded_dim};
  const float cap = a.softcap * 1.44269504f;
  for (long h = 0; h < share; h += kHeads) {
    const float* some_q = q + h * layout.padded_dim;
    float* to = partial + h * layout.partial_stride;
    switch (share - h) {
      case 1: part_of_heads<1>(keys, values, some_q, scores, cap, to, layout.partial_stride); break;
      case 2: part_of_heads<2>(keys, values, some_q, scores, cap, to, layout.partial_stride); break;
      case 3: part_of_heads<3>(keys, values, some_q, scores, cap, to, layout.partial_stride); break;
      default: part_of_heads<kHeads>(keys, values, some_q, scores, cap, to, layout.partial_stride);
    }
  }
}

// Joins the parts of one head into out [D]. The result of part p is at partial + p * stride.
static inline void join_parts(const float* partial, long stride, long parts, long dim, float* out) {
  float maximum = partial[dim], total = 0.0f;
  for (long p = 1; p < parts; ++p) {
    const float m = partial[p * stride + dim];
    maximum = m > maximum ? m : maximum;
  }
  for (long p = 0; p < parts; ++p) {
    const float* from = partial + p * stride;
    float weights[kLanes];
    store(weights, exp2_of_negative(broadcast(from[dim] - maximum)));
    const F w = broadcast(weights[0]);
    total += weights[0] * from[dim + 1];
    for (long d = 0; d < dim; d += kLanes) {
      const F sums = w * load_some(from + d, dim - d);
      store_some(out + d, p ? load_some(out + d, dim - d) + sums : sums, dim - d);
    }
  }
  const F inverse = broadcast(1.0f / total);
  for (long d = 0; d < dim; d += kLanes) store_some(out + d, load_some(out + d, dim - d) * inverse, dim - d);
}

}  // namespace edgellama::EDGELLAMA_ISA
