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
//   w4gN  [K/N][16] float16 scales d, then [K/N][16] int8 zero points z in quarters (0..64), padded to 64 bytes together,
//         then q as int4's: value d * (q - z / 4). N is 32, 64 or 128; a last group may have fewer steps
//
// For SwiGLU the panels alternate: 16 columns of gate, then the same 16 columns of up.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/rounding.h"

namespace edgellama {

enum class Format : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3, q4_0 = 4, w4g32 = 5, w4g64 = 6, w4g128 = 7 };
constexpr int kFormatCount = 8;

constexpr int kPanel = 16;  // columns of a panel
constexpr int kGroup = 32;  // steps along K that share a scale of an activation, and of a weight but for w4g64 and w4g128

static inline long padded_k(long k) { return round_up(k, kGroup); }
static inline long group_count(long k) { return padded_k(k) / kGroup; }
static inline long panel_count(long n) { return divide_up(n, kPanel); }

constexpr bool is_w4(Format format) { return format >= Format::w4g32; }

// Groups of kGroup steps that share a scale.
constexpr long groups_per_scale(Format format) { return format == Format::w4g128 ? 4 : format == Format::w4g64 ? 2 : 1; }

// Scales of a column, of an integer format.
static inline long scale_count(Format format, long k) { return divide_up(group_count(k), groups_per_scale(format)); }

// Bytes of the scales at the start of a panel, with the zero points of w4gN, without and with padding.
static inline long used_scale_bytes(Format format, long k) {
  return format <= Format::bf16 ? 0 : scale_count(format, k) * kPanel * (is_w4(format) ? 3 : 2);
}
static inline size_t scale_bytes(Format format, long k) {
  return static_cast<size_t>(round_up(used_scale_bytes(format, k), 64));
}

// The zero points of a panel of w4gN.
static inline const int8_t* zero_points(Format format, const uint8_t* panel, long k) {
  return reinterpret_cast<const int8_t*>(panel + scale_count(format, k) * kPanel * 2);
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
