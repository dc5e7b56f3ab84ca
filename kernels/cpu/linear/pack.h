// Packing: float weights into the layouts of weight_format.h. kernels/weight_format.py says what it means, bit for bit.
#pragma once

#include <cstdint>

#include "linear/weight_format.h"

namespace edgellama {

struct PackArgs {
  Format format = Format::f32;
  long n = 0, k = 0;           // output columns, input features
  const float* w = nullptr;    // [n, k]; or, for matrices that are quantized already:
  const uint16_t* scales = nullptr;  // [n, k / 32] 16-bit cells
  const uint8_t* q = nullptr;        // [n, k], k a multiple of 32: int8 + 128, or 0..15
  uint8_t* out = nullptr;      // packed_bytes
};

}  // namespace edgellama
