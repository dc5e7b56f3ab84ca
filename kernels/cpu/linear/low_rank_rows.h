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

// The same for kProjectedRows rows of x, two ranks at a time: each load of A serves all rows. The sums have the same bits.
static inline void project_rows(const LowRank& low, const float* x, long stride, float* out, long most) {
  constexpr int T = kProjectedRows;
  const long k = low.in, whole = k / kLanes * kLanes;
  for (long r = 0; r < low.rank; r += 2) {
    const float* const row[2] = {low.a + r * k, low.a + (r + 1 < low.rank ? r + 1 : r) * k};
    F s[T][2] = {};
    for (long i = 0; i < whole; i += kLanes) {
      const F first = load(row[0] + i), second = load(row[1] + i);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const F value = load(x + t * stride + i);
        s[t][0] = fma(first, value, s[t][0]);
        s[t][1] = fma(second, value, s[t][1]);
      }
    }
    for (int t = 0; t < T; ++t)
      for (long j = 0; j < 2 && r + j < low.rank; ++j) {
        float total = sum(s[t][j]);
        for (long i = whole; i < k; ++i) total += row[j][i] * x[t * stride + i];
        out[t * most + r + j] = total;
      }
  }
}

// Writes A x of rows [begin, end) to a.projected, all their ranks.
static inline void project_range(const LinearArgs& a, long begin, long end, float* lines,
                                 void (*normalised_row)(const LinearArgs&, int, float*)) {
  const long stride = padded_k(a.shape.in), most = a.most_rank;
  for (long t = begin; t < end;) {
    const LowRank* const low = low_rank_of(a, t);
    long count = 1;
    while (count < kProjectedRows && t + count < end && low_rank_of(a, t + count) == low) ++count;
    if (low) {
      for (long i = 0; i < count; ++i) normalised_row(a, static_cast<int>(t + i), lines + i * stride);
      if (count == kProjectedRows)
        project_rows(*low, lines, stride, a.projected + t * most, most);
      else
        for (long i = 0; i < count; ++i)
          project_row(*low, lines + i * stride, 0, low->rank, a.projected + (t + i) * most);
    }
    t += count;
  }
}

// Writes A x of all computed rows to a.projected. The threads share the rows; if these are few, also the ranks, so that
// one row occupies all of them. `lines` are this thread's, [kProjectedRows, padded K].
static inline void project(const LinearArgs& a, Worker& me, float* lines,
                           void (*normalised_row)(const LinearArgs&, int, float*)) {
  const long most = a.most_rank;
  if (a.count >= 2L * kProjectedRows * me.count()) {
    const Range rows = share(me, a.count, kProjectedRows);
    return project_range(a, rows.begin, rows.end, lines, normalised_row);
  }
  const Range mine = share(me, a.count * most);
  for (long i = mine.begin; i < mine.end;) {
    const long t = i / most, begin = i - t * most;
    const long end = (t + 1) * most < mine.end ? most : mine.end - t * most;
    const LowRank* const low = low_rank_of(a, t);
    const long last = low && low->rank < end ? low->rank : end;
    if (low && begin < last) {
      normalised_row(a, static_cast<int>(t), lines);
      project_row(*low, lines, begin, last, a.projected + t * most);
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

// sums [rows][32] += B A x for computed rows first .. first+rows-1 and a pair of panels. Rows of one adapter share the
// loads of B; the sums have the bits of add_low_rank.
static inline void add_low_rank_block(const LinearArgs& a, long first, int rows, long pair, float* sums) {
  if (!a.low_rank) return;
  constexpr int T = 4;
  for (int r = 0; r < rows;) {
    const LowRank* const low = low_rank_of(a, first + r);
    int count = 1;
    while (count < T && r + count < rows && low_rank_of(a, first + r + count) == low) ++count;
    for (long p = 0; low && p < 2 && 2 * pair + p < low->panels; ++p) {
      const LowRank::Panel part = low->panel[2 * pair + p];
      const float* b = low->b + part.at;
      const float* x[T];
      for (int i = 0; i < T; ++i) x[i] = a.projected + (first + r + (i < count ? i : 0)) * a.most_rank + part.first;
      F more[T][kVec] = {};
      for (int j = 0; j < part.count; ++j, b += kPanel)
        for (int v = 0; v < kVec; ++v) {
          const F w = load(b + v * kLanes);
#pragma GCC unroll 4
          for (int i = 0; i < T; ++i) more[i][v] = fma(w, broadcast(x[i][j]), more[i][v]);
        }
      for (int i = 0; i < count; ++i)
        for (int v = 0; v < kVec; ++v) {
          float* const at = sums + (r + i) * 2 * kPanel + p * kPanel + v * kLanes;
          store(at, load(at) + more[i][v]);
        }
    }
    r += count;
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
