// Written in C++ because a decode step, which reads all weights, evicts numpy's code from the caches: ten calls of
// numpy then cost more than this.
#include "sampling/penalties.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace edgellama {
namespace {

// Penalises each token of the text once, however often the text contains it.
void penalise_repetition(float* scores, long n, const int64_t* text, long length, float penalty) {
  thread_local std::vector<bool> seen;
  if (static_cast<long>(seen.size()) < n) seen.resize(n);
  for (long i = 0; i < length; ++i) {
    if (seen[text[i]]) continue;
    seen[text[i]] = true;
    float& score = scores[text[i]];
    score = score < 0 ? score * penalty : score / penalty;
  }
  for (long i = 0; i < length; ++i) seen[text[i]] = false;
}

// Bans each token that follows an earlier occurrence of the text's last ngram - 1 tokens.
void ban_repeats(float* scores, const int64_t* text, long length, long ngram) {
  if (length < ngram) return;
  const int64_t* const suffix = text + length - (ngram - 1);
  for (long i = 0; i + ngram <= length; ++i)
    if (std::equal(suffix, text + length, text + i)) scores[text[i + ngram - 1]] = -HUGE_VALF;
}

}  // namespace
}  // namespace edgellama

void edgellama_penalise(float* scores, long row, long n, const int64_t* text, long length, float penalty, long ngram) {
  scores += row * n;
  if (penalty != 1.0f) edgellama::penalise_repetition(scores, n, text, length, penalty);
  if (ngram > 0) edgellama::ban_repeats(scores, text, length, ngram);
}
