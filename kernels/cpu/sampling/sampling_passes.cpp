// ScorePasses (sampling.h) for the instruction set that is compiled.
#include <cstring>
#include <limits>

#include "base/kernels.h"
#include "sampling/sampling.h"
#include "simd/simd.h"

namespace edgellama::EDGELLAMA_ISA {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kFloor = -200.0f;  // replaces a relative score of -infinity, whose weight is 0

F relative(const ScoreScale& scale, F score) { return (score - scale.peak) * scale.inverse_temperature; }

F away(const Distance& distance, F score) {
  const F off = max(relative(distance.scale, score), broadcast(kFloor)) - distance.centre;
  return max(off, -off);
}

// A bit for each lane of the mask that is set.
unsigned lanes(I mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}

// The last run of n elements if it is shorter than kRun. take() copies it to a whole run, give() copies it back.
struct Tail {
  long first, size;
  explicit Tail(long n) : first(n / kRun * kRun), size(n % kRun) {}
  void take(const float* from, float* run, float filler) const {
    for (int i = 0; i < kRun; ++i) run[i] = i < size ? from[first + i] : filler;
  }
  void give(const float* run, float* to) const { std::memcpy(to + first, run, size * sizeof(float)); }
};

float run_maximum(const float* scores, I& strange) {
  F top = load(scores);
  strange |= (I)(top != top);
  for (int i = kLanes; i < kRun; i += kLanes) {
    const F x = load(scores + i);
    strange |= (I)(x != x);
    top = max(top, x);
  }
  return max_lane(top);
}

float weigh_run(const ScoreScale& scale, const float* scores, float* weights) {
  F total = broadcast(0.0f);
  for (int i = 0; i < kRun; i += kLanes) {
    const F x = load(scores + i);
    const F weight = x > kNone ? exp(relative(scale, x)) : broadcast(0.0f);
    store(weights + i, weight);
    total += weight;
  }
  return sum(total);
}

// Keeps the weights of a run for which `counts` (index in the run, weights -> mask) is set, and sets the others to 0.
// Returns their sum.
template <class Counts>
float keep_run(float* weights, const Counts& counts) {
  F total = broadcast(0.0f);
  for (int i = 0; i < kRun; i += kLanes) {
    const F x = load(weights + i);
    const F weight = counts(i, x) ? x : broadcast(0.0f);
    store(weights + i, weight);
    total += weight;
  }
  return sum(total);
}

}  // namespace

float score_maxima(const float* scores, long n, float* maxima) {
  I strange = {};
  float peak = kNone;
  const Tail tail(n);
  for (long i = 0; i < tail.first; i += kRun) {
    const float top = run_maximum(scores + i, strange);
    maxima[i / kRun] = top;
    peak = top > peak ? top : peak;
  }
  if (tail.size > 0) {
    float run[kRun];
    tail.take(scores, run, kNone);
    const float top = run_maximum(run, strange);
    maxima[tail.first / kRun] = top;
    peak = top > peak ? top : peak;
  }
  for (int i = 0; i < kLanes; ++i)
    if (strange[i]) peak = std::numeric_limits<float>::quiet_NaN();
  return peak;
}

void weigh_scores(ScoreScale scale, const float* scores, long n, float* weights, float* sums) {
  const Tail tail(n);
  for (long i = 0; i < tail.first; i += kRun) sums[i / kRun] = weigh_run(scale, scores + i, weights + i);
  if (tail.size > 0) {
    float run[kRun];
    tail.take(scores, run, kNone);
    sums[tail.first / kRun] = weigh_run(scale, run, run);
    tail.give(run, weights);
  }
}

double score_moment(ScoreScale scale, const float* scores, const float* weights, long n) {
  double moment = 0;
  const Tail tail(n);
  const auto run_moment = [&](const float* s, const float* w) {
    F total = broadcast(0.0f);
    for (int i = 0; i < kRun; i += kLanes)
      total = fma(load(w + i), max(relative(scale, load(s + i)), broadcast(kFloor)), total);
    return sum(total);
  };
  for (long i = 0; i < tail.first; i += kRun) moment += run_moment(scores + i, weights + i);
  if (tail.size > 0) {
    float score_run[kRun], weight_run[kRun];
    tail.take(scores, score_run, kNone);
    tail.take(weights, weight_run, 0.0f);
    moment += run_moment(score_run, weight_run);
  }
  return moment;
}

void add_bins(Distance distance, const float* scores, const float* weights, long n, double* bins) {
  // Consecutive scores often share a bin. With one table each addition would wait for the one before.
  constexpr int kTables = 4;
  double tables[kTables][kBins] = {};
  const auto add = [&](const float* s, const float* w) {
    int32_t places[kRun];
    for (int i = 0; i < kRun; i += kLanes) {
      const I bin = __builtin_convertvector(min(away(distance, load(s + i)) * kBinsAUnit, broadcast(kBins - 1)), I);
      std::memcpy(places + i, &bin, sizeof bin);
    }
    for (int i = 0; i < kRun; ++i) tables[i % kTables][places[i]] += w[i];
  };
  const Tail tail(n);
  for (long i = 0; i < tail.first; i += kRun) add(scores + i, weights + i);
  if (tail.size > 0) {
    float score_run[kRun], weight_run[kRun];
    tail.take(scores, score_run, kNone);
    tail.take(weights, weight_run, 0.0f);
    add(score_run, weight_run);
  }
  for (int i = 0; i < kBins; ++i) bins[i] = tables[0][i] + tables[1][i] + tables[2][i] + tables[3][i];
}

double weights_within(Distance distance, const float* scores, const float* weights, long n, float end) {
  double mass = 0;
  const auto add = [&](const float* s, const float* w) {
    F total = broadcast(0.0f);
    for (int i = 0; i < kRun; i += kLanes) total += away(distance, load(s + i)) < end ? load(w + i) : broadcast(0.0f);
    mass += sum(total);
  };
  const Tail tail(n);
  for (long i = 0; i < tail.first; i += kRun) add(scores + i, weights + i);
  if (tail.size > 0) {
    float score_run[kRun], weight_run[kRun];
    tail.take(scores, score_run, kNone);
    tail.take(weights, weight_run, 0.0f);
    add(score_run, weight_run);
  }
  return mass;
}

long scores_between(Distance distance, const float* scores, const float* weights, long n, float begin, float end,
                    int32_t* places) {
  long found = 0;
  const auto look = [&](const float* s, const float* w, long first) {
    for (int i = 0; i < kRun; i += kLanes) {
      const F d = away(distance, load(s + i));
      unsigned hits = lanes((I)(d >= begin) & (I)(d < end) & (I)(load(w + i) > 0.0f));
      for (; hits != 0; hits &= hits - 1) places[found++] = static_cast<int32_t>(first + i + __builtin_ctz(hits));
    }
  };
  const Tail tail(n);
  for (long i = 0; i < tail.first; i += kRun) look(scores + i, weights + i, i);
  if (tail.size > 0) {
    float score_run[kRun], weight_run[kRun];
    tail.take(scores, score_run, kNone);
    tail.take(weights, weight_run, 0.0f);
    look(score_run, weight_run, tail.first);
  }
  return found;
}

void keep_near(Distance distance, const float* scores, float end, float* weights, long n, float* sums) {
  const Tail tail(n);
  const auto keep = [&](const float* s, float* w) {
    return keep_run(w, [&](int at, F) { return away(distance, load(s + at)) < end; });
  };
  for (long i = 0; i < tail.first; i += kRun) sums[i / kRun] = keep(scores + i, weights + i);
  if (tail.size > 0) {
    float score_run[kRun], weight_run[kRun];
    tail.take(scores, score_run, kNone);
    tail.take(weights, weight_run, 0.0f);
    sums[tail.first / kRun] = keep(score_run, weight_run);
    tail.give(weight_run, weights);
  }
}

void keep_heavy(float least, float* weights, long n, float* sums) {
  const Tail tail(n);
  const auto heavy = [&](int, F x) { return x >= least; };
  for (long i = 0; i < tail.first; i += kRun) sums[i / kRun] = keep_run(weights + i, heavy);
  if (tail.size > 0) {
    float run[kRun];
    tail.take(weights, run, 0.0f);
    sums[tail.first / kRun] = keep_run(run, heavy);
    tail.give(run, weights);
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
