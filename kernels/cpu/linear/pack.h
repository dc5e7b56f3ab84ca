// Packs weights into the layouts of weight_format.h. kernels/weight_format.py defines the result, bit for bit.
#pragma once

#include <cstdint>

#include "linear/weight_format.h"

namespace edgellama {

struct PackArgs {
  Format format = Format::f32;
  long n = 0, k = 0;           // output columns, input features
  const float* w = nullptr;    // [n, k]; or, for a matrix that is already quantized:
  const uint16_t* scales = nullptr;  // [n, k / 32] 16-bit scales
  const uint8_t* q = nullptr;        // [n, k], k a multiple of 32: int8 as q + 128, int4 and q4_0 as 0..15
  uint8_t* out = nullptr;      // packed_bytes() bytes
};

}  // namespace edgellama
