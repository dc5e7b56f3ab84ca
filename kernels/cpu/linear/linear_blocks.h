// What the kernels for many rows share (linear_many.h, linear_bytes.h): blocks of rows, pairs of panels, prefetches.
#pragma once

#include "linear/linear_rows.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr int kWide = 2 * kPanel;              // columns of a pair of panels
constexpr int kWideVec = kWide / kLanes;       // float vectors in a row of them

// Bytes of a group in a packed panel, without scales.
constexpr long group_bytes(Format format) { return format == Format::int8 ? 512 : 256; }

// Divides the rows into blocks of at most `most`, as even as possible.
struct RowBlocks {
  long rows, count;
  RowBlocks(long rows_, long most) : rows(rows_), count(divide_up(rows_, most)) {}
  long first(long block) const { return rows * block / count; }
  int size(long block) const { return static_cast<int>(first(block + 1) - first(block)); }
};

static inline I load_cells(const void* p) {
  I cells;
  std::memcpy(&cells, p, sizeof cells);
  return cells;
}

// Prefetches from the second-level cache, into which prefetch_pair has brought the weights.
template <int bytes>
static inline void prefetch_near(const uint8_t* at) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + 2048 + i, 0, 3);
}

// Prefetches part `part` of `parts` of the bytes from `from` on.
static inline void prefetch_part(const uint8_t* from, long bytes, long part, long parts) {
  for (long i = bytes * part / parts / 64 * 64; i < bytes * (part + 1) / parts; i += 64)
    __builtin_prefetch(from + i, 0, 2);
}

// Prefetches part `part` of `parts` of groups [first, last) of a pair of packed panels.
template <Format format>
static inline void prefetch_pair(const LinearArgs& a, long pair, long first, long last, long part, long parts) {
  const size_t panel_size = panel_bytes(format, a.shape.in), scales = scale_bytes(format, a.shape.in);
  for (long panel = 2 * pair; panel < 2 * pair + 2 && panel < a.shape.panels(); ++panel) {
    const uint8_t* const from = a.weight + panel * panel_size;
    const long each = groups_per_scale(format);
    prefetch_part(from + first / each * kPanel * 2, (last - first) / each * kPanel * 2, part, parts);
    prefetch_part(from + scales + first * group_bytes(format), (last - first) * group_bytes(format), part, parts);
  }
}

// Prefetches the cache lines that receive a block's results, and the residual.
static inline void prefetch_results(const LinearArgs& a, long row, int rows, long pair) {
  const bool gated = a.shape.gated();
  const long column = pair * (gated ? kPanel : kWide), last = gated ? 0 : kPanel;
  for (int r = 0; r < rows; ++r) {
    const long at = static_cast<long>(a.target[row + r]) * a.shape.out + column;
    for (long i = 0; i <= last && column + i < a.shape.out; i += kPanel) {
      __builtin_prefetch(a.y + at + i, 1, 3);
      if (a.residual) __builtin_prefetch(a.residual + at + i, 0, 3);
    }
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
