// The candidate tokens that sampling.cpp reduces step by step, and the selection of the nearest of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/rounding.h"
#include "sampling/sampling.h"

namespace edgellama {

// Candidate tokens: all tokens, or a few with their ids.
struct Candidates {
  long n = 0;
  const float* scores = nullptr;
  std::vector<int32_t> ids;    // only of a few
  std::vector<float> own;      // the scores of a few; `scores` points to them
  std::vector<float> weights;  // [n], valid if `weighed`
  std::vector<float> sums;     // the sum of the weights of each run, valid if `weighed`
  bool weighed = false;

  long runs() const { return divide_up(n, kRun); }
  double total() const {
    double total = 0;
    for (long i = 0; i < runs(); ++i) total += sums[i];
    return total;
  }

  // The candidate at which the cumulative weight exceeds `target`. left: the part of `target` that falls in its weight.
  long walk(double target, double& left) const {
    left = target;
    long last = 0;  // the last run with a weight
    for (long run = 0; run < runs(); ++run) {
      if (sums[run] <= 0) continue;
      last = run;
      if (left < sums[run]) break;
      left -= sums[run];
    }
    long found = 0;
    for (long i = last * kRun; i < std::min(n, (last + 1) * kRun); ++i) {
      if (weights[i] == 0) continue;
      found = i;
      if (left < weights[i]) break;
      left -= weights[i];
    }
    return found;
  }
};

struct Near {
  float distance, weight;
  long at;  // its index among the candidates
  // If the distances are equal, the later candidate comes first.
  bool operator<(const Near& other) const {
    return distance < other.distance || (distance == other.distance && at > other.at);
  }
};

// One thread's memory, which all its calls reuse.
struct Workspace {
  std::vector<float> maxima, order;
  std::vector<int32_t> places;
  std::vector<Near> near;
  Candidates all, few;
};

// Selects the nearest candidates: moves them to the front of the list until their weights reach `mass` and there are at
// least `least` of them. With `ties`, also those at the same distance as the last one. Returns their number, 0 for an
// empty list.
inline long nearest(std::vector<Near>& list, double mass, long least, bool ties) {
  long first = 0, last = static_cast<long>(list.size());  // the last one that is needed is in [first, last)
  const auto at = [&](long i) { return list.begin() + i; };
  while (last - first > 1) {
    const long middle = first + (last - first) / 2;
    std::nth_element(at(first), at(middle), at(last));
    double weight = 0;
    for (long i = first; i < middle; ++i) weight += list[i].weight;
    if (weight >= mass && middle >= least) {
      last = middle;
    } else {
      mass -= weight;
      first = middle;
    }
  }
  if (!ties || last == 0) return last;
  const float farthest = list[last - 1].distance;
  return std::partition(at(last), list.end(), [&](const Near& x) { return x.distance == farthest; }) - list.begin();
}

}  // namespace edgellama
