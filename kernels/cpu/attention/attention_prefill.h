// Prefill: attention of a block of queries of one (row, group) to the cache, key block by key block, with an online
// softmax in float32 (flash attention, arXiv:2205.14135). Queries lie along the lanes in strips of two vectors: token
// by token, with the heads of the group side by side. Key blocks that no query of a strip sees are skipped.
#pragma once

#include "attention/attention_plan.h"
#include "attention/attention_products.h"

namespace edgellama::EDGELLAMA_ISA {

// The maximum before the first key. It is finite, so that a strip whose first key blocks are all masked gives no NaN.
constexpr float kNoMaximum = -1e30f;

// The state of a strip between key blocks. Every array has one entry for each lane.
struct StripState {
  float *maximum, *normaliser;
  const float *first, *last;  // the first and the last position that the lane's query sees
};

// Turns the scores [count, kStrip] of the keys from `position` on into probabilities, and updates the strip's maximum,
// normaliser and sums [padded_dim, kStrip]. masked: at least one lane does not see every key.
template <class Products>
static inline void online_softmax(float* scores, float* probabilities, long count, long position, bool masked,
                                  const StripState& strip, float* sums, long padded_dim) {
  for (long lane = 0; lane < kStrip; lane += kLanes) {
    const F first = load(strip.first + lane), last = load(strip.last + lane);
    const F before = load(strip.maximum + lane);
    F most = before, other = before;  // two chains, because one would wait for the latency of max
    for (long i = 0; i < count; i += 2) {
      float* at = scores + i * kStrip + lane;
      F x = load(at), y = load(at + kStrip);
      if (masked) {
        const F here = broadcast(static_cast<float>(position + i)), next = here + 1.0f;
        x = choose((here >= first) & (here <= last), x, broadcast(-__builtin_inff()));
        y = choose((next >= first) & (next <= last), y, broadcast(-__builtin_inff()));
        store(at, x), store(at + kStrip, y);
      }
      most = max(most, x), other = max(other, y);
    }
    most = max(most, other);
    F total = broadcast(0.0f);
    for (long i = 0; i < count; i += 2) {
      const F x = exp2_of_negative(load(scores + i * kStrip + lane) - most);
      const F y = exp2_of_negative(load(scores + (i + 1) * kStrip + lane) - most);
      total += x + y;
      Products::put_probabilities(probabilities, i, lane, x, y);
    }
    F normaliser = load(strip.normaliser + lane);
    if (!all_lanes(most == before)) {
      const F shrink = exp2_of_negative(before - most);
      normaliser *= shrink;
      store(strip.maximum + lane, most);
      for (long d = 0; d < padded_dim; ++d) {
        float* at = sums + d * kStrip + lane;
        store(at, load(at) * shrink);
      }
    }
    store(strip.normaliser + lane, normaliser + total);
  }
}

// Queries first .. last-1 of one (row, group): query m is token m / share, head m % share of the group.
struct QueryBlock {
  long row, group, first, last;
};

// The parts of a thread's memory (ScratchLayout::thread_floats).
struct PrefillMemory {
  float *queries, *sums, *scores, *probabilities, *keys, *values, *maximum, *normaliser, *first, *last, *passage;
  PrefillMemory(const ScratchLayout& layout, float* memory) {
    const long all = kMaxStrips * kMaxStrip, dim = layout.padded_dim;
    const auto take = [&memory](long floats) { return (memory += floats) - floats; };
    queries = take(dim * all), sums = take(dim * all);
    scores = take(kKeyBlock * kMaxStrip), probabilities = take(kKeyBlock * kMaxStrip);
    keys = take(dim * kKeyBlock), values = take(dim * kKeyBlock);
    maximum = take(all), normaliser = take(all), first = take(all), last = take(all);
    passage = take(dim * kMaxStrip);
  }
};

// Writes the rotated and scaled queries to their strips, and sets each lane's visible positions and state. Lanes past
// the last query get a query of zeros and the positions of the last query.
template <class Products>
static inline void load_queries(const AttentionArgs& a, const Products& products, const QueryBlock& block,
                                const PrefillMemory& m, long padded_dim) {
  const long share = a.heads / a.groups, lanes = round_up(block.last - block.first, kStrip);
  for (long lane = 0; lane < lanes; ++lane) {
    const bool real = block.first + lane < block.last;
    const long query = real ? block.first + lane : block.last - 1;
    const long token = query / share, position = a.start[block.row] + token;
    const long oldest = a.window && position >= a.window ? position - a.window + 1 : 0;
    m.first[lane] = static_cast<float>(oldest), m.last[lane] = static_cast<float>(position);
    m.maximum[lane] = kNoMaximum, m.normaliser[lane] = 0.0f;

    float* q = m.passage + lane % kLanes * padded_dim;
    long d = 0;
    if (real) {
      turned_head(a, block.row, token, block.group * share + query % share, position, q);
      const float factor = query_factor(a, position);
      for (; d < a.head_dim; ++d) q[d] *= factor;
    }
    for (; d < padded_dim; ++d) q[d] = 0.0f;
    if (lane % kLanes == kLanes - 1)
      products.put_queries(m.passage, m.queries + lane / kStrip * (kStrip * padded_dim), lane / kLanes % 2 * kLanes);
  }
}

// Divides the sums by the normalisers and writes them to the output.
static inline void store_results(const AttentionArgs& a, const QueryBlock& block, const PrefillMemory& m,
                                 long padded_dim) {
  const long share = a.heads / a.groups;
  for (long lane = 0; lane < block.last - block.first; ++lane) {
    if (lane % kLanes == 0) {
      const float* sums = m.sums + lane / kStrip * (kStrip * padded_dim) + lane / kLanes % 2 * kLanes;
      for (long d = 0; d < padded_dim; d += kLanes) transpose(sums + d * kStrip, kStrip, m.passage + d, padded_dim);
    }
    const long query = block.first + lane, token = query / share, head = block.group * share + query % share;
    const float* from = m.passage + lane % kLanes * padded_dim;
    float* out = a.out + ((block.row * a.tokens + token) * a.heads + head) * a.head_dim;
    const F inverse = broadcast(1.0f / m.normaliser[lane]);
    for (long d = 0; d < a.head_dim; d += kLanes) store_some(out + d, load(from + d) * inverse, a.head_dim - d);
  }
}

// One job: a block of queries against all keys that they see.
template <class T, class Products>
static void prefill_block(const AttentionArgs& a, const ScratchLayout& layout, const QueryBlock& block, float* memory) {
  const long dim = layout.padded_dim;
  const PrefillMemory m(layout, memory);
  const Products products(dim);
  load_queries(a, products, block, m, dim);
  const long strips = divide_up(block.last - block.first, kStrip);
  std::memset(m.sums, 0, sizeof(float) * size_t(strips * kStrip * dim));

  const CacheView<T> cache(a, block.row, block.group);
  const long begin = static_cast<long>(m.first[0]) / kKeyBlock * kKeyBlock;
  const long end = static_cast<long>(m.last[block.last - block.first - 1]) + 1;
  for (long position = begin; position < end; position += kKeyBlock) {
    const long present = end - position < kKeyBlock ? end - position : kKeyBlock;
    products.put_keys(cache.keys + position * a.head_dim, cache.key_scale_at(position), present, a.head_dim, m.keys);
    products.put_values(cache.values + position * a.head_dim, cache.value_scale_at(position), present, a.head_dim,
                        m.values);
    for (long s = 0; s < strips; ++s) {
      const long at = s * kStrip;
      const StripState strip{m.maximum + at, m.normaliser + at, m.first + at, m.last + at};
      // The first and the last visible position both increase from lane to lane.
      const long newest = static_cast<long>(strip.last[kStrip - 1]);
      if (position > newest || position + present <= static_cast<long>(strip.first[0])) continue;
      const long count =
          newest - position + 1 < kKeyBlock ? round_up(newest - position + 1, Products::kStep) : kKeyBlock;
      const bool masked = position + count - 1 > static_cast<long>(strip.last[0]) ||
                          position < static_cast<long>(strip.first[kStrip - 1]);
      float* sums = m.sums + at * dim;
      products.score(m.keys, m.queries + at * dim, count, m.scores);
      if (a.softcap != 0.0f) cap_scores(m.scores, count * kStrip, a.softcap * 1.44269504f);
      online_softmax<Products>(m.scores, m.probabilities, count, position, masked, strip, sums, dim);
      products.weigh(m.values, m.probabilities, count, sums);
    }
  }
  store_results(a, block, m, dim);
}

}  // namespace edgellama::EDGELLAMA_ISA
