// Packs weights into the layouts of weight_format.h. kernels/weight_format.py defines the result, bit for bit.
#pragma once

#include <cstdint>

#include "linear/weight_format.h"

namespace edgellama {

struct PackArgs {
  Format format = Format::f32;
  long n = 0, k = 0;           // output columns, input features
  const float* w = nullptr;    // [n, k]; or, for a matrix that is already quantized:
  const uint16_t* scales = nullptr;  // [n, scale_count()] 16-bit scales
  const int8_t* zeros = nullptr;     // [n, scale_count()] zero points of w4gN in quarters
  const uint8_t* q = nullptr;        // [n, k], k a multiple of 32: int8 as q + 128, the others as 0..15
  uint8_t* out = nullptr;      // packed_bytes() bytes
};

}  // namespace edgellama
