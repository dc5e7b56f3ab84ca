// The hidden states before the head, and the head over any number of them.
//
// The graphs return the logits of each row's last token. Scoring, embeddings and speculative decoding need other
// positions. They ask for the hidden states of a pass here, and compute the head for the positions that they need.
#pragma once

#include "base/export.h"

namespace edgellama {

// Where a pass writes its hidden states: rows * tokens * K floats at `hidden`, which has room for `floats`.
struct HiddenRequest {
  float* hidden = nullptr;
  long floats = 0;
};

// Returns the request of the model whose head has this weight. Its `hidden` is nullptr if the model has no request.
EDGELLAMA_EXPORT HiddenRequest hidden_request(const void* head_weight);

}  // namespace edgellama
