// What a text so far does to the scores of the next token. What it means is in runtime/generation/logits_processors.py.
#pragma once

#include <cstdint>

#include "base/export.h"

// Changes row `row` of scores [rows, n] by text [length], ids below n: a repetition penalty (1: none), and the ban of
// tokens that would repeat `ngram` tokens (0: none).
EDGELLAMA_API void edgellama_penalise(float* scores, long row, long n, const int64_t* text, long length, float penalty,
                                      long ngram);
