// Embedding: rows of a packed matrix as floats. kernels/reference.py (embedding) defines it.
#pragma once

#include <cstdint>

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

}  // namespace edgellama
