// Penalties for the scores of the next token that depend on the text so far. Penalties in
// runtime/generation/logits_processors.py defines them.
#pragma once

#include <cstdint>

#include "base/export.h"

// Changes row `row` of scores [rows, n] in place:
//   text [length]   token ids below n
//   penalty         repetition penalty; 1: none
//   ngram           bans tokens that would repeat so many tokens of the text; 0: none
EDGELLAMA_API void edgellama_penalise(float* scores, long row, long n, const int64_t* text, long length, float penalty,
                                      long ngram);
