// Integer rounding for sizes and counts. Values are 0 or more, steps are 1 or more.
#pragma once

namespace edgellama {

// The largest size of an axis, and of a product of axes that a kernel computes in 32 bits. Sizes up to it cannot
// overflow the byte counts of scratch and weights, which are computed in 64 bits.
constexpr long kMostSize = 1L << 24;

static inline bool is_size(long value) { return value >= 1 && value <= kMostSize; }

static inline long divide_up(long value, long step) { return (value + step - 1) / step; }
static inline long round_up(long value, long step) { return divide_up(value, step) * step; }

}  // namespace edgellama
