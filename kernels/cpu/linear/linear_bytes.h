// Linear for the rows with many tokens (prefill), with dot products of bytes: coarse groups of activations are bytes, and
// fine ones an upper byte, which is multiplied with the coarse groups, and a lower byte, which a second pass adds. The
// sums of a block of rows by two vectors of columns stay in registers. int8 weights are read where they are; 4-bit
// weights are unpacked to bytes once for all rows.
#pragma once

#include "linear/linear_blocks.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr long kByteGroup = kGroup * kPanel;  // bytes of a group of a panel

// The lower bytes of a fine group. x is scale * (256 * upper + lower).
struct LowerBytes {
  int32_t group, start;  // start: the sum's first value, which removes the bias of the weights
  float scale;
  int8_t q[kGroup];
};

// The fine groups of one row.
struct FineGroups {
  int32_t* count;
  LowerBytes* groups;
  FineGroups(uint8_t* memory, long row, long stride)
      : count(reinterpret_cast<int32_t*>(memory + row * stride)),
        groups(reinterpret_cast<LowerBytes*>(memory + row * stride + sizeof(int32_t))) {}
};

// One multiplication: groups [first, last) of a block of rows, by the same groups of a pair of panels.
//   rows     upper bytes [group][row][32] of all K; then their scales and the first values of their sums, [group][row]
//   panels   the bytes of each panel [group][8][16 columns][4]
//   scales   [group][kWide]
//   sums     [row][kWide]; the products are added to them if first > 0, and replace them otherwise
struct BytePiece {
  const uint8_t *rows, *panels[2];
  const float* scales;
  long groups, first, last;
  float* sums;
};

// What the bytes of a format exceed its weights by (4-bit weights: by four times the weights without zero point).
constexpr int byte_bias(Format format) { return format != Format::int8 ? 64 : kSignedBytes ? 0 : 128; }

static inline void put_vector(int8_t* to, I q) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  const Bytes bytes = __builtin_convertvector(q, Bytes);
  std::memcpy(to, &bytes, sizeof bytes);
}

// Quantizes one row of floats into row r of a block of `rows` rows, and writes the lower bytes of its fine groups.
static inline void put_byte_row(const float* line, long groups, int bias, uint8_t* block, int rows, int r,
                                FineGroups fine) {
  int8_t* to = reinterpret_cast<int8_t*>(block) + r * kGroup;
  float* scales = reinterpret_cast<float*>(block + groups * rows * kGroup) + r;
  int32_t* starts = reinterpret_cast<int32_t*>(block + groups * rows * (kGroup + sizeof(float))) + r;
  const float limit = find_peaks(line, groups, true, scales, rows);
  *fine.count = 0;
  for (long g = 0; g < groups; ++g, line += kGroup, to += rows * kGroup, scales += rows, starts += rows) {
    const bool is_fine = *scales > limit;
    QuantizedGroup group = quantize_group(line, *scales, is_fine ? kFineSteps : kCoarseSteps);
    *scales = group.scale;
    if (is_fine) {
      QuantizedGroup upper;
      LowerBytes& lower = fine.groups[(*fine.count)++];
      for (int i = 0; i < kGroup / kLanes; ++i) {
        upper.q[i] = (group.q[i] + 128) >> 8;
        group.q[i] -= upper.q[i] << 8;
        put_vector(lower.q + i * kLanes, group.q[i]);
      }
      lower.group = static_cast<int32_t>(g), lower.start = -bias * total(group), lower.scale = group.scale;
      group = upper;
      *scales = lower.scale * 256.0f;
    }
    for (int i = 0; i < kGroup / kLanes; ++i) put_vector(to + i * kLanes, group.q[i]);
    *starts = -bias * total(group);
  }
}

// Unpacks groups [first, last) of a panel to bytes, where they are not read in place. Writes its scales, `which` of a
// pair. Returns the bytes of group `first`.
template <Format format>
static inline const uint8_t* unpack_bytes(const uint8_t* panel, long k, long first, long last, uint8_t* bytes,
                                          float* scales, int which) {
  constexpr bool kInPlace = format == Format::int8 && !kSignedBytes;
  const uint16_t* from = reinterpret_cast<const uint16_t*>(panel);
  [[maybe_unused]] const int8_t* zeros = zero_points(format, panel, k);
  const uint8_t* data = panel + scale_bytes(format, k) + first * group_bytes(format);
  const uint8_t* const unpacked = kInPlace ? data : bytes;
  scales += which * kPanel;
  for (long g = first; g < last; ++g, scales += kWide, data += group_bytes(format), bytes += kByteGroup) {
    const long at = g / groups_per_scale(format) * kPanel;
    F d[kVec];
    [[maybe_unused]] I bias[kVec];
    if constexpr (format == Format::int4) {
      F z[kVec];
      load_int4_scales(from + at, d, z);
      for (int v = 0; v < kVec; ++v) bias[v] = 64 - __builtin_convertvector(z[v] * broadcast(4.0f), I);
    } else {
      for (int v = 0; v < kVec; ++v) {
        d[v] = load_f16(from + at + v * kLanes);
        if constexpr (is_w4(format)) bias[v] = 64 - __builtin_convertvector(load_s8(zeros + at + v * kLanes), I);
        if constexpr (format == Format::q4_0) bias[v] = I{} + 32;
      }
    }
    for (int v = 0; v < kVec; ++v)
      store(scales + v * kLanes, format == Format::int8 ? d[v] : d[v] * broadcast(0.25f));
    if constexpr (kInPlace) continue;
    prefetch_near<group_bytes(format)>(data);
    for (int q = 0; q < group_bytes(format) / 64; ++q)
      for (int v = 0; v < kVec; ++v) {
        const I cells = load_cells(data + 64 * q + v * kLanes * 4);
        if constexpr (format == Format::int8) {
          const I turned = cells ^ static_cast<int32_t>(0x80808080);
          std::memcpy(bytes + 64 * q + v * kLanes * 4, &turned, sizeof turned);
        } else {
          const I all = bias[v] * 0x01010101;  // the same in the four bytes of a column
          const I low = ((cells & 0x0f0f0f0f) << 2) + all, high = ((cells >> 2) & 0x3c3c3c3c) + all;
          std::memcpy(bytes + 128 * q + v * kLanes * 4, &low, sizeof low);
          std::memcpy(bytes + 128 * q + 64 + v * kLanes * 4, &high, sizeof high);
        }
      }
  }
  return unpacked;
}

static inline I four_steps(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return I{} + four;
}

// The bytes of one vector of columns of a pair of panels.
static inline const uint8_t* vector_bytes(const BytePiece& piece, int vector) {
  return piece.panels[vector / kVec] + vector % kVec * kLanes * 4;
}

// Multiplies the upper bytes of R rows by both panels, two vectors of columns at a time.
template <int R>
static inline void multiply_bytes(const BytePiece& piece) {
  const long groups = piece.last - piece.first, all = piece.groups * R;
  for (int vector = 0; vector < kWideVec; vector += 2) {
    float* sums = piece.sums + vector * kLanes;
    F y[R][2];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < 2; ++v) y[r][v] = piece.first ? load(sums + r * kWide + v * kLanes) : broadcast(0.0f);
    const uint8_t *left = vector_bytes(piece, vector), *right = vector_bytes(piece, vector + 1);
    const float* d = piece.scales + vector * kLanes;
    const int8_t* x = reinterpret_cast<const int8_t*>(piece.rows) + piece.first * R * kGroup;
    const float* scale = reinterpret_cast<const float*>(piece.rows + all * kGroup) + piece.first * R;
    const int32_t* start = reinterpret_cast<const int32_t*>(scale + all);
    for (long g = 0; g < groups; ++g, x += R * kGroup, d += kWide, scale += R, start += R) {
      I s[R][2];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) s[r][0] = s[r][1] = I{} + start[r];
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q, left += 64, right += 64) {
        const I w0 = load_cells(left), w1 = load_cells(right);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const I four = four_steps(x + r * kGroup + 4 * q);
          s[r][0] = dot_bytes(s[r][0], w0, four);
          s[r][1] = dot_bytes(s[r][1], w1, four);
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

// Adds the lower bytes of a row's fine groups to its sums [kWide].
static inline void add_lower_bytes(const BytePiece& piece, const FineGroups& fine, float* sums) {
  F y[kWideVec];
  for (int v = 0; v < kWideVec; ++v) y[v] = load(sums + v * kLanes);
  for (int i = 0; i < *fine.count; ++i) {
    const LowerBytes& lower = fine.groups[i];
    if (lower.group < piece.first || lower.group >= piece.last) continue;
    const long g = lower.group - piece.first;
    I s[kWideVec];
    for (int v = 0; v < kWideVec; ++v) s[v] = I{} + lower.start;
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
      const I four = four_steps(lower.q + 4 * q);
#pragma GCC unroll 8
      for (int v = 0; v < kWideVec; ++v)
        s[v] = dot_bytes(s[v], load_cells(vector_bytes(piece, v) + g * kByteGroup + 64 * q), four);
    }
    for (int v = 0; v < kWideVec; ++v) {
      const F d = load(piece.scales + g * kWide + v * kLanes) * broadcast(lower.scale);
      y[v] = fma(__builtin_convertvector(s[v], F), d, y[v]);
    }
  }
  for (int v = 0; v < kWideVec; ++v) store(sums + v * kLanes, y[v]);
}

// Calls multiply_bytes for the block's number of rows. Blocks of many rows have between kByteRows / 2 and kByteRows.
template <int R = kByteRows>
static inline void multiply_byte_block(int rows, const BytePiece& piece) {
  if constexpr (R >= kByteRows / 2) {
    if (rows == R) return multiply_bytes<R>(piece);
    multiply_byte_block<R - 1>(rows, piece);
  }
}

// Multiplies all rows by pairs [begin, end) of panels, like multiply_pairs of linear_many.h.
template <Format format>
static inline void multiply_byte_pairs(const LinearArgs& a, long begin, long end, long next, const ByteScratch& size,
                                       uint8_t* rows, uint8_t* weights) {
  const long k = a.shape.in, groups = group_count(k), step = size.depth / kGroup;
  const size_t panel_size = panel_bytes(format, k);
  const RowBlocks blocks(a.count, kByteRows);
  uint8_t* const fine = rows + size.rows;
  float* const scales = reinterpret_cast<float*>(weights + size.weights);
  float* const sums = reinterpret_cast<float*>(weights + size.weights + size.scales);
  for (long first = 0; first < groups; first += step) {
    const long last = first + step < groups ? first + step : groups;
    for (long pair = begin; pair < end; ++pair) {
      const uint8_t* panel = a.weight + 2 * pair * panel_size;
      const bool whole = 2 * pair + 1 < a.shape.panels();
      BytePiece piece = {nullptr, {}, scales, groups, first, last, nullptr};
      piece.panels[0] = unpack_bytes<format>(panel, k, first, last, weights, scales, 0);
      // A missing panel is replaced by its neighbour; nobody reads its sums.
      piece.panels[1] = unpack_bytes<format>(whole ? panel + panel_size : panel, k, first, last,
                                             weights + size.weights / 2, scales, 1);
      for (long b = 0; b < blocks.count; ++b) {
        const long row = blocks.first(b);
        prefetch_pair<format>(a, pair + 1 < end ? pair + 1 : next, first, last, b, blocks.count);
        if (last == groups) prefetch_results(a, row, blocks.size(b), pair);
        piece.rows = rows + row * size.row;
        piece.sums = size.pairs == 1 ? sums : sums + ((pair - begin) * a.count + row) * kWide;
        multiply_byte_block(blocks.size(b), piece);
        for (int r = 0; r < blocks.size(b); ++r)
          add_lower_bytes(piece, FineGroups(fine, row + r, size.fine_row), piece.sums + r * kWide);
        if (last == groups) finish_block(a, static_cast<int>(row), blocks.size(b), pair, piece.sums);
      }
    }
  }
}

static inline void linear_bytes(const LinearArgs& a, Worker& me,
                                void (*normalised_row)(const LinearArgs&, int, float*)) {
  const long groups = group_count(a.shape.in);
  const int bias = a.shape.format == Format::int8 ? byte_bias(Format::int8) : byte_bias(Format::int4);
  const RowBlocks blocks(a.count, kByteRows);
  const ByteScratch size(a.count, a.shape.in);
  uint8_t* const rows = a.scratch;
  uint8_t* const weights = a.scratch + size.shared() + me.index() * size.own();
  float* const line = reinterpret_cast<float*>(weights + size.weights + size.scales + size.sums);

  const Range mine = share(me, blocks.count);
  for (long b = mine.begin; b < mine.end; ++b)
    for (int r = 0; r < blocks.size(b); ++r) {
      const long t = blocks.first(b) + r;
      normalised_row(a, static_cast<int>(t), line);
      put_byte_row(line, groups, bias, rows + blocks.first(b) * size.row, blocks.size(b), r,
                   FineGroups(rows + size.rows, t, size.fine_row));
    }
  me.barrier();

  const long pairs = divide_up(a.shape.panels(), 2);
  long begin = me.take() * size.pairs;
  while (begin < pairs) {
    const long end = begin + size.pairs < pairs ? begin + size.pairs : pairs;
    const long next = me.take() * size.pairs;  // taken early, so that its weights can be prefetched
    switch (a.shape.format) {
      case Format::int8:
        multiply_byte_pairs<Format::int8>(a, begin, end, next, size, rows, weights);
        break;
      case Format::int4:
        multiply_byte_pairs<Format::int4>(a, begin, end, next, size, rows, weights);
        break;
      case Format::w4g32:
        multiply_byte_pairs<Format::w4g32>(a, begin, end, next, size, rows, weights);
        break;
      case Format::w4g64:
        multiply_byte_pairs<Format::w4g64>(a, begin, end, next, size, rows, weights);
        break;
      case Format::w4g128:
        multiply_byte_pairs<Format::w4g128>(a, begin, end, next, size, rows, weights);
        break;
      default:
        multiply_byte_pairs<Format::q4_0>(a, begin, end, next, size, rows, weights);
    }
    begin = next;
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
