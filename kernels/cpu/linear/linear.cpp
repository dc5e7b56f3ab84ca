// Linear for any number of rows. Each thread reads its share of the panels once, and multiplies all rows of the call
// by a panel while it is in the cache.
#include "linear/linear.h"

#include "base/pool.h"
#include "linear/low_rank_rows.h"
#include "linear/linear_rows.h"
#include "simd/dot.h"

#if defined(__AVX2__)
#include "linear/linear_many.h"
#endif
#if defined(__AVX512F__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
#include "linear/linear_bytes.h"
#endif
#if defined(__AMX_BF16__)
#include "linear/linear_amx.h"
#endif

namespace edgellama::EDGELLAMA_ISA {
namespace {

constexpr int kTileRows = 12;  // from this many rows on, AMX tiles save more time than unpacking the weights costs
[[maybe_unused]] constexpr int kManyRows = 20;  // the same for words of 16 bits, without AMX

// Writes row t of the input to `out` [padded K]: normalised if there is a gamma, and padded with zeros.
void normalised_row(const LinearArgs& a, int t, float* out) {
  const long k = a.shape.in, whole = k / kLanes * kLanes;
  const float* x = a.x + static_cast<long>(a.source[t]) * k;
  float factor = 1.0f;
  if (a.gamma) {
    F squares = broadcast(0.0f);
    for (long i = 0; i < whole; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (long i = whole; i < k; ++i) total += x[i] * x[i];
    factor = 1.0f / __builtin_sqrtf(total / static_cast<float>(k) + a.shape.eps);
  }
  for (long i = 0; i < whole; i += kLanes) {
    F value = load(x + i);
    if (a.gamma) value = value * broadcast(factor) * load(a.gamma + i);
    store(out + i, value);
  }
  for (long i = whole; i < k; ++i) out[i] = a.gamma ? x[i] * factor * a.gamma[i] : x[i];
  for (long i = k; i < padded_k(k); ++i) out[i] = 0.0f;
}

// Writes rows [begin, end) to `rows` in the form that the row kernels read.
void prepare_rows(const LinearArgs& a, long begin, long end, uint8_t* rows, float* line) {
  const long groups = group_count(a.shape.in), stride = prepared_row_bytes(a.shape.format, a.shape.in);
  for (long t = begin; t < end; ++t) {
    uint8_t* row = rows + t * stride;
    if (a.shape.format <= Format::bf16) {
      normalised_row(a, t, reinterpret_cast<float*>(row));
    } else {
      normalised_row(a, t, line);
      quantize_row(line, groups, t < a.rounded, QuantizedRow::at(row, groups));
    }
  }
}

// Multiplies R rows from row t on by units [begin, end). A unit is 16 columns of y: one panel, or a pair for SwiGLU.
template <Format format, int R>
void panels(const LinearArgs& a, const Range& units, int t, const uint8_t* rows) {
  const size_t panel_size = panel_bytes(format, a.shape.in);
  const bool gated = a.shape.gated();
  for (long u = units.begin; u < units.end; ++u) {
    F y[R][kVec] = {};
    const long panel = gated ? 2 * u : u;
    multiply_panel<format, R>(a.weight + panel * panel_size, a.shape.in, rows, y);
    add_low_rank<R>(a, t, panel, y);
    add_bias<R>(a, panel, y);
    if (gated) {
      F up[R][kVec] = {};
      multiply_panel<format, R>(a.weight + (panel + 1) * panel_size, a.shape.in, rows, up);
      add_low_rank<R>(a, t, panel + 1, up);
      add_bias<R>(a, panel + 1, up);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < kVec; ++v) y[r][v] = activation(a, y[r][v]) * up[r][v];
    }
    for (int r = 0; r < R; ++r) write_columns(a, t + r, u * kPanel, y[r]);
  }
}

template <Format format>
void all_rows(const LinearArgs& a, const Range& units, const uint8_t* rows) {
  const long stride = prepared_row_bytes(format, a.shape.in);
  // If there are several blocks of rows, go panel by panel, so that each panel is read from memory once.
  const long step = a.count > kRowBlock ? 1 : units.end - units.begin;
  for (long u = units.begin; u < units.end; u += step) {
    const Range some{u, u + step};
    int t = 0;
    for (; t + kRowBlock <= a.count; t += kRowBlock) panels<format, kRowBlock>(a, some, t, rows + t * stride);
    const uint8_t* rest = rows + t * stride;
    switch (a.count - t) {
      case 1:
        panels<format, 1>(a, some, t, rest);
        break;
      case 2:
        panels<format, 2>(a, some, t, rest);
        break;
      case 3:
        panels<format, 3>(a, some, t, rest);
        break;
#if defined(__AVX512F__)
      case 4:
        panels<format, 4>(a, some, t, rest);
        break;
      case 5:
        panels<format, 5>(a, some, t, rest);
        break;
      case 6:
        panels<format, 6>(a, some, t, rest);
        break;
      case 7:
        panels<format, 7>(a, some, t, rest);
        break;
#endif
      default:
        break;
    }
  }
}

// Multiplies computed rows that are all of one kind, or of both if the variant treats them alike.
void multiply_rows(const LinearArgs& a, Worker& me) {
  const long units = panel_count(a.shape.out);
#if defined(__AVX2__)
  if (a.count >= kManyRows && a.shape.format > Format::bf16) return linear_many(a, me, normalised_row);
#endif
  const RowScratch size(a.shape.format, a.count, a.shape.in);
  uint8_t* const mine = a.scratch + size.shared() + me.index() * size.own();
  float* const line = reinterpret_cast<float*>(mine);
  uint8_t* const rows = size.alone ? mine + size.line : a.scratch;
  const Range prepared = size.alone ? Range{0, a.count} : share(me, a.count);
  prepare_rows(a, prepared.begin, prepared.end, rows, line);
  if (!size.alone) me.barrier();
  const Range part = share(me, units);
  switch (a.shape.format) {
    case Format::f32:
      return all_rows<Format::f32>(a, part, rows);
    case Format::bf16:
      return all_rows<Format::bf16>(a, part, rows);
    case Format::int8:
      return all_rows<Format::int8>(a, part, rows);
    case Format::int4:
      return all_rows<Format::int4>(a, part, rows);
    case Format::q4_0:
      return all_rows<Format::q4_0>(a, part, rows);
    case Format::w4g32:
      return all_rows<Format::w4g32>(a, part, rows);
    case Format::w4g64:
      return all_rows<Format::w4g64>(a, part, rows);
    case Format::w4g128:
      return all_rows<Format::w4g128>(a, part, rows);
  }
}

}  // namespace

void linear(const LinearArgs& a, Worker& me) {
  if (a.low_rank) {
    float* const lines = reinterpret_cast<float*>(a.scratch) + me.index() * kProjectedRows * padded_k(a.shape.in);
    project(a, me, lines, normalised_row);
    me.barrier();
  }
#if defined(__AMX_BF16__)
  if (a.count >= kTileRows && a.shape.format != Format::f32) {
    linear_tiles(a, me, normalised_row);
    return;
  }
#endif
#if defined(__AVX512F__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
  if (a.rounded) {
    LinearArgs part = a;
    part.count = a.rounded;
    linear_bytes(part, me, normalised_row);
    if (a.rounded == a.count) return;
    me.barrier();  // the other rows use the same scratch
    part.count = a.count - a.rounded;
    part.rounded = 0;
    part.source += a.rounded, part.target += a.rounded;
    if (a.low_rank) part.projected += static_cast<long>(a.rounded) * a.most_rank;
    return multiply_rows(part, me);
  }
#endif
  multiply_rows(a, me);
}

// Prefetches the first weights that this thread will read, before it waits or does other work.
void linear_ahead(const LinearArgs& a, const Worker& me) {
  constexpr long kAsked = 16384;
  if (a.count >= kTileRows) return;  // with many rows arithmetic is the limit, not memory
  const Range part = share(me, panel_count(a.shape.out));
  const long panels = a.shape.gated() ? 2 : 1, size = panel_bytes(a.shape.format, a.shape.in);
  const long bytes = (part.end - part.begin) * panels * size;
  const uint8_t* first = a.weight + part.begin * panels * size;
  for (long i = 0; i < (bytes < kAsked ? bytes : kAsked); i += 64) __builtin_prefetch(first + i, 0, 2);
}

}  // namespace edgellama::EDGELLAMA_ISA
