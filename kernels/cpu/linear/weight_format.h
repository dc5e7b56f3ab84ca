// The packed weight layout: the exporter writes it, the linear kernels stream it, and the embedding reads rows of it.
// kernels/weight_format.py defines the values.
//
// A matrix [N, K] (N output columns, K input features) is divided into panels of 16 columns. N is padded with zero
// columns, K with zeros to a multiple of 32. A panel is contiguous and a multiple of 64 bytes long, so a thread's share
// of the panels is one sequential read. The parts of a panel, in order:
//
//   f32   [K][16] float
//   bf16  [K/2][16][2] bfloat16: the tile order of AMX
//   int8  [K/32][16] float16 scales d, padded to 64 bytes, then [K/4][16][4] uint8 q: value d * (q - 128)
//   int4  [K/32][16] uint16 scales, padded to 64 bytes, then [K/8][16][4] bytes: the low nibbles hold k 0..3 of each 8
//         steps, the high nibbles k 4..7. The bits of a scale are ddddddddddzzzzzz: ten bits of the float16 d (5 of the
//         exponent, 5 of the mantissa) and six bits of the zero point z in quarters: value d * (q - z / 4)
//   q4_0  as int4, but the scale is a float16 d and the zero point is 8: value d * (q - 8). This is GGUF's Q4_0.
//
// For SwiGLU the panels alternate: 16 columns of gate, then the same 16 columns of up.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/rounding.h"

namespace edgellama {

enum class Format : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3, q4_0 = 4 };
constexpr int kFormatCount = 5;

constexpr int kPanel = 16;  // columns of a panel
constexpr int kGroup = 32;  // steps along K that share a scale

static inline long padded_k(long k) { return round_up(k, kGroup); }
static inline long group_count(long k) { return padded_k(k) / kGroup; }
static inline long panel_count(long n) { return divide_up(n, kPanel); }

// Bytes of the scales at the start of a panel, padding included.
static inline size_t scale_bytes(Format format, long k) {
  return format <= Format::bf16 ? 0 : static_cast<size_t>(round_up(group_count(k) * kPanel * 2, 64));
}

static inline size_t panel_bytes(Format format, long k) {
  const size_t cells = static_cast<size_t>(padded_k(k)) * kPanel;
  switch (format) {
    case Format::f32:
      return cells * 4;
    case Format::bf16:
      return cells * 2;
    case Format::int8:
      return scale_bytes(format, k) + cells;
    default:
      return scale_bytes(format, k) + cells / 2;
  }
}

// Bytes of a packed [n, k] matrix.
static inline size_t packed_bytes(Format format, long n, long k) {
  return static_cast<size_t>(panel_count(n)) * panel_bytes(format, k);
}

}  // namespace edgellama
