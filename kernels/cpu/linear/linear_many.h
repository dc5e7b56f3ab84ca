// Linear for many rows without AMX: widens a pair of panels of integers to 16 bits once, and multiplies every row by
// it. The sums of a block of rows by two vectors of columns stay in registers. The integers, their sums and the order
// of the float operations are the same as in linear_rows.h, so a row's result has the same bits.
#pragma once

#include "linear/linear_blocks.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr long kWideGroup = kGroup * kWide;    // 16-bit words in a group of a pair

// One multiplication: groups [first, last) of a block of rows, by the same groups of a pair of panels.
//   rows     words [group][row][32] of all K, then their scales [group][row]
//   weights  words [group][vector][16 pairs][kLanes][2] of these groups, then their scales [group][kWide]
//   sums     [row][kWide]; the products are added to them if first > 0, and replace them otherwise
struct Piece {
  const uint8_t *rows, *weights;
  long groups, first, last;
  float* sums;
};

// Quantizes one row of floats into row r of a block of `rows` rows.
static inline void put_row(const float* line, long groups, bool rounded, uint8_t* block, int rows, int r) {
  int16_t* to = reinterpret_cast<int16_t*>(block) + r * kGroup;
  float* scales = reinterpret_cast<float*>(block + groups * rows * kGroup * 2) + r;
  const float limit = find_peaks(line, groups, rounded, scales, rows);
  for (long g = 0; g < groups; ++g, line += kGroup, to += rows * kGroup, scales += rows) {
    const QuantizedGroup group = quantize_group(line, *scales, *scales > limit ? kFineSteps : kCoarseSteps);
    for (int i = 0; i < kGroup / kLanes; ++i) store_words(to + i * kLanes, group.q[i]);
    *scales = group.scale;
  }
}

// Widens four steps of one vector of columns, subtracts the zero point, and writes the pairs of words to `to`.
static inline void put_bytes(I bytes, I zero, int16_t* to) {
  I first, last;
  bytes_to_words(bytes, first, last);
  first = subtract_words(first, zero), last = subtract_words(last, zero);
  std::memcpy(to, &first, sizeof first);
  std::memcpy(to + 2 * kLanes, &last, sizeof last);
}

// Widens one group of one vector of columns, and returns its scale. With 4 bits the words hold 4 q - z (z in quarters),
// which is exact, and the scale is divided by 4. zeros: of w4gN.
template <Format format>
static inline F widen_group(const uint16_t* scales, [[maybe_unused]] const int8_t* zeros, const uint8_t* data, int v,
                            int16_t* to) {
  const I twice = I{} + 0x10001;
  data += v * kLanes * 4;
  if constexpr (format == Format::int8) {
    for (int q = 0; q < 8; ++q) put_bytes(load_cells(data + 64 * q), 128 * twice, to + q * 4 * kLanes);
    return load_f16(scales + v * kLanes);
  }
  F scale[kVec], z[kVec];
  I zero = 32 * twice;
  if constexpr (format == Format::int4) {
    load_int4_scales(scales, scale, z);
    zero = __builtin_convertvector(z[v] * broadcast(4.0f), I) * twice;
  } else {
    scale[v] = load_f16(scales + v * kLanes);
    if constexpr (is_w4(format)) zero = __builtin_convertvector(load_s8(zeros + v * kLanes), I) * twice;
  }
  for (int q = 0; q < 4; ++q) {
    const I both = load_cells(data + 64 * q);
    put_bytes((both & 0x0f0f0f0f) << 2, zero, to + 2 * q * 4 * kLanes);
    put_bytes((both >> 2) & 0x3c3c3c3c, zero, to + (2 * q + 1) * 4 * kLanes);
  }
  return scale[v] * broadcast(0.25f);
}

// Widens groups [first, last) of one panel. `which` is its place in the pair: 0 or 1.
template <Format format>
static inline void widen(const uint8_t* panel, long k, long first, long last, uint8_t* weights, int which) {
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
  const int8_t* zeros = zero_points(format, panel, k);
  const uint8_t* data = panel + scale_bytes(format, k) + first * group_bytes(format);
  int16_t* to = reinterpret_cast<int16_t*>(weights) + which * (kWideGroup / 2);
  float* scale = reinterpret_cast<float*>(weights + (last - first) * kWideGroup * 2) + which * kPanel;
  for (long g = first; g < last; ++g) {
    prefetch_near<group_bytes(format)>(data);
    const long at = g / groups_per_scale(format) * kPanel;
    for (int v = 0; v < kVec; ++v)
      store(scale + v * kLanes, widen_group<format>(scales + at, zeros + at, data, v, to + v * kGroup * kLanes));
    data += group_bytes(format), to += kWideGroup, scale += kWide;
  }
}

// Multiplies R rows by both panels, two vectors of columns at a time.
template <int R>
static inline void multiply_words(const Piece& piece) {
  const long groups = piece.last - piece.first;
  for (int vector = 0; vector < kWideVec; vector += 2) {
    float* sums = piece.sums + vector * kLanes;
    F y[R][2];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < 2; ++v) y[r][v] = piece.first ? load(sums + r * kWide + v * kLanes) : broadcast(0.0f);
    const int16_t* w = reinterpret_cast<const int16_t*>(piece.weights) + vector * kGroup * kLanes;
    const float* d = reinterpret_cast<const float*>(piece.weights + groups * kWideGroup * 2) + vector * kLanes;
    const int16_t* x = reinterpret_cast<const int16_t*>(piece.rows) + piece.first * R * kGroup;
    const float* scale = reinterpret_cast<const float*>(piece.rows + piece.groups * R * kGroup * 2) + piece.first * R;
    for (long g = 0; g < groups; ++g, w += kWideGroup, d += kWide, x += R * kGroup, scale += R) {
      I s[R][2] = {};
#pragma GCC unroll 16
      for (int pair = 0; pair < kGroup / 2; ++pair) {
        const I w0 = load_cells(w + pair * 2 * kLanes), w1 = load_cells(w + (pair + kGroup / 2) * 2 * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          int32_t two;
          std::memcpy(&two, x + r * kGroup + 2 * pair, sizeof two);
          const I both = I{} + two;
          s[r][0] = dot_words(s[r][0], w0, both);
          s[r][1] = dot_words(s[r][1], w1, both);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < 2; ++v)
          y[r][v] = fma(__builtin_convertvector(s[r][v], F), load(d + v * kLanes) * broadcast(scale[r]), y[r][v]);
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < 2; ++v) store(sums + r * kWide + v * kLanes, y[r][v]);
  }
}

// Calls multiply_words for the block's number of rows. Blocks of many rows have between kWordRows / 2 and kWordRows.
template <int R = kWordRows>
static inline void multiply_block(int rows, const Piece& piece) {
  if constexpr (R >= kWordRows / 2) {
    if (rows == R) return multiply_words<R>(piece);
    multiply_block<R - 1>(rows, piece);
  }
}

// Multiplies all rows by pairs [begin, end) of panels. A K above WideScratch::kMaxDepth is divided into pieces, so
// that the rows and the weights of a piece stay in the cache; the sums [pair][row][kWide] stay in memory from piece to
// piece. `next` is the pair that this thread will multiply after them; its weights are prefetched.
template <Format format>
static inline void multiply_pairs(const LinearArgs& a, long begin, long end, long next, const WideScratch& size,
                                  const uint8_t* rows, uint8_t* weights) {
  const long k = a.shape.in, groups = group_count(k), row_bytes = size.rows / a.count, step = size.depth / kGroup;
  const size_t panel_size = panel_bytes(format, k);
  const RowBlocks blocks(a.count, kWordRows);
  float* const sums = reinterpret_cast<float*>(weights + size.weights);
  for (long first = 0; first < groups; first += step) {
    const long last = first + step < groups ? first + step : groups;
    for (long pair = begin; pair < end; ++pair) {
      const uint8_t* panel = a.weight + 2 * pair * panel_size;
      const bool whole = 2 * pair + 1 < a.shape.panels();
      if (!whole) std::memset(weights, 0, size.weights);  // the missing panel is multiplied too; nobody reads its sums
      widen<format>(panel, k, first, last, weights, 0);
      if (whole) widen<format>(panel + panel_size, k, first, last, weights, 1);
      for (long b = 0; b < blocks.count; ++b) {
        const long row = blocks.first(b);
        prefetch_pair<format>(a, pair + 1 < end ? pair + 1 : next, first, last, b, blocks.count);
        if (last == groups) prefetch_results(a, row, blocks.size(b), pair);
        float* const out = size.pairs == 1 ? sums : sums + ((pair - begin) * a.count + row) * kWide;
        multiply_block(blocks.size(b), {rows + row * row_bytes, weights, groups, first, last, out});
        if (last == groups) finish_block(a, static_cast<int>(row), blocks.size(b), pair, out);
      }
    }
  }
}

static inline void linear_many(const LinearArgs& a, Worker& me,
                               void (*normalised_row)(const LinearArgs&, int, float*)) {
  const long groups = group_count(a.shape.in);
  const RowBlocks blocks(a.count, kWordRows);
  const WideScratch size(a.count, a.shape.in);
  uint8_t* const rows = a.scratch;
  uint8_t* const weights = a.scratch + size.shared() + me.index() * size.own();
  float* const line = reinterpret_cast<float*>(weights + size.weights + size.sums);

  const Range mine = share(me, blocks.count);
  for (long b = mine.begin; b < mine.end; ++b)
    for (int r = 0; r < blocks.size(b); ++r) {
      const long t = blocks.first(b) + r;
      normalised_row(a, static_cast<int>(t), line);
      put_row(line, groups, t < a.rounded, rows + blocks.first(b) * (size.rows / a.count), blocks.size(b), r);
    }
  me.barrier();

  const long pairs = divide_up(a.shape.panels(), 2);
  long begin = me.take() * size.pairs;
  while (begin < pairs) {
    const long end = begin + size.pairs < pairs ? begin + size.pairs : pairs;
    const long next = me.take() * size.pairs;  // taken early, so that its weights can be prefetched
    switch (a.shape.format) {
      case Format::int8:
        multiply_pairs<Format::int8>(a, begin, end, next, size, rows, weights);
        break;
      case Format::int4:
        multiply_pairs<Format::int4>(a, begin, end, next, size, rows, weights);
        break;
      case Format::w4g32:
        multiply_pairs<Format::w4g32>(a, begin, end, next, size, rows, weights);
        break;
      case Format::w4g64:
        multiply_pairs<Format::w4g64>(a, begin, end, next, size, rows, weights);
        break;
      case Format::w4g128:
        multiply_pairs<Format::w4g128>(a, begin, end, next, size, rows, weights);
        break;
      default:
        multiply_pairs<Format::q4_0>(a, begin, end, next, size, rows, weights);
    }
    begin = next;
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
