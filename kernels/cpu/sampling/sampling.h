// Choosing one of n tokens by their scores. What it means is in runtime/generation/sampler.py; here is how it is made fast.
//
// Behind a decode step that has read all the weights, memory is what costs: so the scores are gone through a few times
// in vectors (ScorePasses, one set an instruction set), and single tokens are only looked at where a limit lies.
#pragma once

#include <cstdint>

#include "base/export.h"

namespace edgellama {

constexpr int kRun = 32;          // scores that are looked at as one: through their maximum, or the sum of their weights
constexpr int kBins = 1024;       // of distances, the last without an end
constexpr float kBinsAUnit = 32;  // what is farther than 32 units weighs less than 1e-13

// How scores become weights: exp((score - peak) / temperature), at least exp(-87), but 0 for a score of -infinity.
struct ScoreScale {
  float peak = 0, inverse_temperature = 1;
};

// The distance of a score from a centre, both relative to the peak: |(score - peak) / temperature - centre|.
struct Distance {
  ScoreScale scale;
  float centre = 0;
};

// Arrays of n scores and weights; of ceil(n / kRun) maxima and sums. A weight of 0 says that the token does not count.
struct ScorePasses {
  // The maximum of each run; returns that of all, NaN where a score is NaN.
  float (*maxima)(const float* scores, long n, float* maxima);
  // The weights, and their sum a run.
  void (*weigh)(ScoreScale scale, const float* scores, long n, float* weights, float* sums);
  // The sum of weight * (score - peak) / temperature.
  double (*moment)(ScoreScale scale, const float* scores, const float* weights, long n);
  // Adds up the weights by distance, in bins.
  void (*add_bins)(Distance distance, const float* scores, const float* weights, long n, double* bins);
  // What those weigh that are nearer than `end`.
  double (*within)(Distance distance, const float* scores, const float* weights, long n, float end);
  // The places of those that count and are not nearer than `begin` but nearer than `end`; returns how many.
  long (*between)(Distance distance, const float* scores, const float* weights, long n, float begin, float end,
                  int32_t* places);
  // Drops what is not nearer than `end`; sums again.
  void (*keep_near)(Distance distance, const float* scores, float end, float* weights, long n, float* sums);
  // Drops what weighs less than `least`; sums again.
  void (*keep_heavy)(float least, float* weights, long n, float* sums);
};

// The settings, as runtime/generation/sampler.py lays them out; the neutral values are those here.
struct Sampling {
  int32_t isa = -1;  // of enum class Isa; -1 for the best
  int32_t top_k = 0;
  int32_t keep = 1;  // at least so many tokens stay
  float temperature = 1;
  float top_p = 1;
  float min_p = -1;
  float typical_p = 1;
};

}  // namespace edgellama

// These take scores [n], or row `row` of scores [rows, n], and return a token, or 0; and below 0: -1 where scores are not
// numbers, -2 where all are -infinity, -3 where the variant is not available here.

// The first of the highest scores.
EDGELLAMA_API int edgellama_likeliest(const edgellama::Sampling* settings, const float* scores, long row, long n);
// The token that `uniform`, in [0, 1), picks by the softmax of what the settings leave.
EDGELLAMA_API int edgellama_draw(const edgellama::Sampling* settings, const float* scores, long row, long n, double uniform);
// What the settings leave: scores over temperature, -infinity for what is dropped; out [n].
EDGELLAMA_API int edgellama_warp(const edgellama::Sampling* settings, const float* scores, long n, float* out);
// log(sum(exp(score / temperature))).
EDGELLAMA_API int edgellama_log_normaliser(const edgellama::Sampling* settings, const float* scores, long row, long n,
                                           double* out);
