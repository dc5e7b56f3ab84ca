// Selects one of n tokens by their scores. runtime/generation/sampler.py defines the result.
//
// After a decode step, which reads all weights, reading memory is the main cost. So the code passes over the scores
// only a few times, in vectors (ScorePasses, one set for each instruction set), and looks at single tokens only near a
// limit.
#pragma once

#include <cstdint>

#include "base/export.h"

namespace edgellama {

// Scores that form a run: a pass stores one maximum, or one sum of weights, for each run.
constexpr int kRun = 32;
constexpr int kBins = 1024;       // bins of distances; the last has no upper end
constexpr float kBinsAUnit = 32;  // bins per unit of distance; beyond 32 units a weight is below 1e-13

// Maps a score to its weight: exp((score - peak) / temperature), at least exp(-87), but 0 for a score of -infinity.
struct ScoreScale {
  float peak = 0, inverse_temperature = 1;
};

// The distance of a score from a centre: |(score - peak) / temperature - centre|.
struct Distance {
  ScoreScale scale;
  float centre = 0;
};

// Arrays: scores [n], weights [n], maxima and sums [ceil(n / kRun)]. A token with weight 0 is dropped.
struct ScorePasses {
  // Writes the maximum of each run. Returns the maximum of all scores, or NaN if a score is NaN.
  float (*maxima)(const float* scores, long n, float* maxima);
  // Writes the weights, and their sum for each run.
  void (*weigh)(ScoreScale scale, const float* scores, long n, float* weights, float* sums);
  // Returns the sum of weight * (score - peak) / temperature.
  double (*moment)(ScoreScale scale, const float* scores, const float* weights, long n);
  // Writes the sum of the weights in each bin of distance: bins [kBins].
  void (*add_bins)(Distance distance, const float* scores, const float* weights, long n, double* bins);
  // Returns the sum of the weights at distances below `end`.
  double (*within)(Distance distance, const float* scores, const float* weights, long n, float end);
  // Writes the indices of the tokens that are not dropped and whose distance is in [begin, end). Returns their number.
  long (*between)(Distance distance, const float* scores, const float* weights, long n, float begin, float end,
                  int32_t* places);
  // Drops the tokens at distances of `end` or more. Updates the sums.
  void (*keep_near)(Distance distance, const float* scores, float end, float* weights, long n, float* sums);
  // Drops the tokens with weights below `least`. Updates the sums.
  void (*keep_heavy)(float least, float* weights, long n, float* sums);
};

// The settings. runtime/generation/sampler.py has the same structure. The initial values change nothing.
struct Sampling {
  int32_t isa = -1;  // a number of enum class Isa; -1: the best
  int32_t top_k = 0;
  int32_t keep = 1;  // every limit keeps at least so many tokens
  float temperature = 1;
  float top_p = 1;
  float min_p = -1;
  float typical_p = 1;
};

}  // namespace edgellama

// The C interface. The functions take scores [n], or row `row` of scores [rows, n], all float32. On an error they
// return -1 (scores are not numbers), -2 (all scores are -infinity), -3 (this CPU or this build lacks the variant) or -4
// (out of range: the inverse of the temperature must be positive and finite, top_p and typical_p in [0, 1], min_p at
// most 1, top_k at least 0, keep at least 1, n in 1..2^31-1, uniform in [0, 1)).

// Returns the first of the tokens with the highest score.
EDGELLAMA_API int edgellama_likeliest(const edgellama::Sampling* settings, const float* scores, long row, long n);
// Returns the token that `uniform`, in [0, 1), selects from the softmax of the scores that the settings keep.
EDGELLAMA_API int edgellama_draw(const edgellama::Sampling* settings, const float* scores, long row, long n,
                                 double uniform);
// Writes scores / temperature to out [n], and -infinity for the tokens that the settings drop. Returns 0.
EDGELLAMA_API int edgellama_warp(const edgellama::Sampling* settings, const float* scores, long n, float* out);
// Writes log(sum(exp(score / temperature))) to out. Returns 0.
EDGELLAMA_API int edgellama_log_normaliser(const edgellama::Sampling* settings, const float* scores, long row, long n,
                                           double* out);
