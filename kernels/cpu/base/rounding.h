// Integer rounding for sizes and counts. Values are 0 or more, steps are 1 or more.
#pragma once

namespace edgellama {

static inline long divide_up(long value, long step) { return (value + step - 1) / step; }
static inline long round_up(long value, long step) { return divide_up(value, step) * step; }

}  // namespace edgellama
