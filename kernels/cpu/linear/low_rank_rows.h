// The two products of a low-rank addition (low_rank.h): A x of each row, before the weights are read; and B times it,
// for each panel of 16 columns.
#pragma once

#include "base/pool.h"
#include "linear/linear.h"
#include "simd/dot.h"

namespace edgellama::EDGELLAMA_ISA {

// The addition of computed row t, or nullptr.
static inline const LowRank* low_rank_of(const LinearArgs& a, long t) {
  return a.low_rank[a.source[t] / a.shape.tokens];
}

// Writes out[r] = A[r] x for ranks [begin, end). Four at a time share the loads of x.
static inline void project_row(const LowRank& low, const float* x, long begin, long end, float* out) {
  const long k = low.in, whole = k / kLanes * kLanes;
  for (long r = begin; r < end; r += 4) {
    const long some = end - r < 4 ? end - r : 4;
    const float* row[4];
    for (long j = 0; j < 4; ++j) row[j] = low.a + (r + (j < some ? j : 0)) * k;
    F s[4] = {};
    for (long i = 0; i < whole; i += kLanes) {
      const F value = load(x + i);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s[j] = fma(load(row[j] + i), value, s[j]);
    }
    for (long j = 0; j < some; ++j) {
      float total = sum(s[j]);
      for (long i = whole; i < k; ++i) total += row[j][i] * x[i];
      out[r + j] = total;
    }
  }
}

// Writes A x of all computed rows to a.projected. The threads share rows and ranks, so that one row occupies all of
// them. `line` is this thread's, [padded K].
static inline void project(const LinearArgs& a, Worker& me, float* line,
                           void (*normalised_row)(const LinearArgs&, int, float*)) {
  const long most = a.most_rank;
  const Range mine = share(me, a.count * most);
  for (long i = mine.begin; i < mine.end;) {
    const long t = i / most, begin = i - t * most;
    const long end = (t + 1) * most < mine.end ? most : mine.end - t * most;
    const LowRank* const low = low_rank_of(a, t);
    const long last = low && low->rank < end ? low->rank : end;
    if (low && begin < last) {
      normalised_row(a, static_cast<int>(t), line);
      project_row(*low, line, begin, last, a.projected + t * most);
    }
    i = t * most + end;
  }
}

// y += B A x for computed rows t .. t+R-1 and the 16 columns of a panel.
template <int R>
static inline void add_low_rank(const LinearArgs& a, long t, long panel, F y[R][kVec]) {
  if (!a.low_rank) return;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const LowRank* const low = low_rank_of(a, t + r);
    if (!low) continue;
    const LowRank::Panel part = low->panel[panel];
    const float *b = low->b + part.at, *x = a.projected + (t + r) * a.most_rank + part.first;
    F more[kVec] = {};
    for (int j = 0; j < part.count; ++j, b += kPanel)
      for (int v = 0; v < kVec; ++v) more[v] = fma(load(b + v * kLanes), broadcast(x[j]), more[v]);
    for (int v = 0; v < kVec; ++v) y[r][v] = y[r][v] + more[v];
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
