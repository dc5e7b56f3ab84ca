// The tokens that sampling.cpp narrows down, and the choice of those of least distance among some of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/rounding.h"
#include "sampling/sampling.h"

namespace edgellama {

// Tokens in question: all, or a few with their ids.
struct Candidates {
  long n = 0;
  const float* scores = nullptr;
  std::vector<int32_t> ids;    // of the few
  std::vector<float> own;      // their scores
  std::vector<float> weights;  // n of them, once they are `weighed`
  std::vector<float> sums;     // of each run of weights
  bool weighed = false;

  long runs() const { return divide_up(n, kRun); }
  double total() const {
    double total = 0;
    for (long i = 0; i < runs(); ++i) total += sums[i];
    return total;
  }

  // The candidate at which the sum of the weights passes `target`, and how far it is in by then.
  long walk(double target, double& left) const {
    left = target;
    long last = 0;  // of the runs that weigh anything
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
  long at;  // its place among the candidates
  // Of equal distances the later one comes first.
  bool operator<(const Near& other) const {
    return distance < other.distance || (distance == other.distance && at > other.at);
  }
};

// Memory of one thread, which a row after the other uses.
struct Workspace {
  std::vector<float> maxima, order;
  std::vector<int32_t> places;
  std::vector<Near> near;
  Candidates all, few;
};

// Moves to the front the ones of least distance until their weights reach `mass`, and `least` of them at least; with
// `ties` also those that are as far as the last one. Returns how many; 0 of none.
inline long nearest(std::vector<Near>& list, double mass, long least, bool ties) {
  long first = 0, last = static_cast<long>(list.size());  // the last one needed lies in [first, last)
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
