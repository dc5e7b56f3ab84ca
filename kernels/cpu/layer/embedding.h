// Embedding: rows of a packed matrix as floats. kernels/reference.py (embedding) defines it.
#pragma once

#include <cstdint>

#include "base/export.h"
#include "linear/weight_format.h"

namespace edgellama {

struct EmbeddingArgs {
  Format format = Format::f32;
  int rows = 0, tokens = 0;         // B, S
  int vocabulary = 0, width = 0;    // of the packed matrix: V columns, K features
  const uint8_t* weight = nullptr;  // packed; also the LM head's matrix if they are tied
  const int32_t* ids = nullptr;     // [B, S], valid ids are in 0..V-1
  const int32_t* length = nullptr;  // [B], each 0..S
  float* y = nullptr;               // [B, S, K]; positions from length[b] on are not written
};

// Whether the kernel can run with these sizes, as linear_sizes_fit.
EDGELLAMA_EXPORT bool embedding_sizes_fit(const EmbeddingArgs& args);

// The position b * tokens + s of the first valid token whose id is not in 0..V-1, or -1. The lengths are right.
EDGELLAMA_EXPORT int64_t wrong_token(const EmbeddingArgs& args);

}  // namespace edgellama
