// Linear for a few rows: multiplies a block of rows by one panel of 16 columns, and applies bias and epilogue.
#pragma once

#include "linear/linear.h"
#include "linear/low_rank_rows.h"
#include "simd/dot.h"

namespace edgellama::EDGELLAMA_ISA {

// Bytes to prefetch ahead: decode waits for memory, and the hardware prefetcher stops at each page.
constexpr long kAhead = 4096;
static inline void prefetch(const uint8_t* from, long bytes) {
  for (long i = 0; i < bytes; i += 64) __builtin_prefetch(from + i + kAhead, 0, 3);
}

// Prefetches the weights that follow: early into the second-level cache, and shortly before use into the first; int8
// only into the first. Panels are contiguous, so the prefetch may reach into the next panel. At the end of a matrix it
// fetches memory that nobody reads, which is harmless. Measured: on a Xeon a thread reads int8 weights at 14 GB/s with
// it and at 10 GB/s without it; int4 gains half again as much; the distances hardly matter there. On an EPYC (Zen 4) an
// int4 step with these distances takes 0.82 of the time with 6 KB and 1 KB. On a Zen 5 an int8 step takes 0.85 (one
// thread) and 0.94 (two) of the time with a second prefetch 16 KB ahead; 2, 3, 6, 8, 12 or 16 KB instead of 4 are slower
// by a fifth. float32, which computes little between two cache lines, is 8 % faster with 6 KB and 1 KB.
template <Format format, int bytes>
static inline void prefetch_weights(const uint8_t* at) {
  constexpr bool kWide = format == Format::f32;
  constexpr long kFar = kWide ? 6144 : 16384, kNear = kWide ? 1024 : kAhead;
#pragma GCC unroll 8
  for (int i = 0; i < bytes; i += 64) {
    if constexpr (format != Format::int8) __builtin_prefetch(at + kFar + i, 0, 2);
    __builtin_prefetch(at + kNear + i, 0, 3);
  }
}

// y += rows x panel, float weights. With few rows, several sums for each row hide the latency of the multiply-add.
template <Format format, int R>
static inline void multiply_float(const uint8_t* panel, long k, const uint8_t* rows, F y[R][kVec]) {
  constexpr int kChains = kRowBlock == 8 ? 2 : R == 1 ? 4 : R <= 3 ? 2 : 1;
  const long depth = padded_k(k), stride = depth;
  const float* x = reinterpret_cast<const float*>(rows);
  F part[kChains][R][kVec] = {};
  constexpr int kCell = format == Format::f32 ? 4 : 2;
  for (long i = 0; i < depth; i += 4) {
    constexpr long kStep = kPanel * kCell;
    // float32 has a third distance, between the far and the near one.
    if constexpr (format == Format::f32) prefetch(panel + i * kStep, 4 * kStep);
    prefetch_weights<format, 4 * kStep>(panel + i * kStep);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      F w[kVec];
      for (int v = 0; v < kVec; ++v) {
        if constexpr (format == Format::f32) {
          w[v] = load(reinterpret_cast<const float*>(panel) + (i + j) * kPanel + v * kLanes);
        } else {  // a 32-bit cell holds a pair of steps, the first in its lower half
          I cell;
          std::memcpy(&cell, panel + ((i + j) / 2 * kPanel + v * kLanes) * 4, sizeof cell);
          w[v] = j % 2 ? (F)(cell & static_cast<int32_t>(0xffff0000)) : (F)(cell << 16);
        }
      }
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < kVec; ++v)
          part[j % kChains][r][v] = fma(w[v], broadcast(x[r * stride + i + j]), part[j % kChains][r][v]);
    }
  }
  for (int c = 0; c < kChains; ++c)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kVec; ++v) y[r][v] = y[r][v] + part[c][r][v];
}

// The zero points of 16 columns of w4gN.
static inline void load_zero_points(const int8_t* zeros, F z[kVec]) {
  for (int v = 0; v < kVec; ++v) z[v] = load_s8(zeros + v * kLanes) * broadcast(0.25f);
}

// y += rows x panel, integer weights.
template <Format format, int R>
static inline void multiply_int(const uint8_t* panel, long k, const uint8_t* rows, F y[R][kVec]) {
  const long groups = group_count(k), stride = prepared_row_bytes(format, k);
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
  [[maybe_unused]] const int8_t* zeros = zero_points(format, panel, k);
  // GCC 12 (-ftree-pre) loses the sums of some instances, with R = 1 and 5, if it knows where the zero points are.
  if constexpr (is_w4(format)) asm("" : "+r"(zeros));
  const uint8_t* data = panel + scale_bytes(format, k);
  QuantizedRow row[R];
  for (int r = 0; r < R; ++r) row[r] = QuantizedRow::at(const_cast<uint8_t*>(rows) + r * stride, groups);
  prefetch(panel, data - panel);
  for (long g = 0; g < groups; ++g) {
    Quad w[8];
    F d[kVec], z[kVec];
    if constexpr (format == Format::int8) {
      prefetch_weights<format, 512>(data);
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) w[q] = load_quad(data + 64 * q);
      data += 512;
    } else {
      prefetch_weights<format, 256>(data);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) load_nibbles(data + 64 * q, w[2 * q], w[2 * q + 1]);
      data += 256;
    }
    const long at = g / groups_per_scale(format) * kPanel;
    if constexpr (format == Format::int4) {
      load_int4_scales(scales + at, d, z);
    } else {
      for (int v = 0; v < kVec; ++v) d[v] = load_f16(scales + at + v * kLanes);
      if constexpr (is_w4(format)) load_zero_points(zeros + at, z);
    }
    constexpr int kZero = format == Format::int8 ? kByteBias : format == Format::q4_0 ? 8 : 0;
    constexpr int T = R < kTogether ? R : kTogether;
#pragma GCC unroll 8
    for (int first = 0; first < R; first += T) {
      Sum s[T];
      for (int r = 0; r < T; ++r) s[r] = start_sum(-kZero * row[first + r].sum[g]);
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q)
        for (int r = 0; r < T; ++r) dot(s[r], w[q], row[first + r].groups[g], 4 * q);
      for (int t = 0; t < T; ++t) {
        const int r = first + t;
        F total[kVec];
        to_float(s[t], total);
        for (int v = 0; v < kVec; ++v) {
          if constexpr (format == Format::int4 || is_w4(format))
            total[v] = fma(z[v], broadcast(-static_cast<float>(row[r].sum[g])), total[v]);
          y[r][v] = fma(total[v], d[v] * broadcast(row[r].scale[g]), y[r][v]);
        }
      }
    }
  }
}

template <Format format, int R>
static inline void multiply_panel(const uint8_t* panel, long k, const uint8_t* rows, F y[R][kVec]) {
  if constexpr (format <= Format::bf16)
    multiply_float<format, R>(panel, k, rows, y);
  else
    multiply_int<format, R>(panel, k, rows, y);
}

static inline F silu(F x) { return x / (broadcast(1.0f) + exp(broadcast(0.0f) - x)); }

// The tanh approximation (arXiv:1606.08415): x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
static inline F gelu(F x) {
  const F factor = fma(x * x, broadcast(0.0713548163f), broadcast(1.59576912f));
  return x / (broadcast(1.0f) + exp(broadcast(0.0f) - x * factor));
}

static inline F activation(const LinearArgs& a, F x) { return a.shape.epilogue == Epilogue::geglu ? gelu(x) : silu(x); }

static inline F soft_cap(F x, float cap) {
  const F one = broadcast(1.0f);
  return (one - broadcast(2.0f) / (exp(x * broadcast(2.0f / cap)) + one)) * broadcast(cap);
}

template <int R>
static inline void add_bias(const LinearArgs& a, long panel, F y[R][kVec]) {
  if (!a.bias) return;
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVec; ++v) y[r][v] = y[r][v] + load(a.bias + panel * kPanel + v * kLanes);
}

// Writes y [16] to columns column .. column+15 of computed row t, as many as exist, and adds the residual.
static inline void write_columns(const LinearArgs& a, int t, long column, F y[kVec]) {
  const long at = static_cast<long>(a.target[t]) * a.shape.out + column;
  const long left = a.shape.out - column;
  if (a.shape.softcap != 0.0f)
    for (int v = 0; v < kVec; ++v) y[v] = soft_cap(y[v], a.shape.softcap);
  if (left >= kPanel) {
    for (int v = 0; v < kVec; ++v) {
      const F more = a.residual ? load(a.residual + at + v * kLanes) : broadcast(0.0f);
      store(a.y + at + v * kLanes, y[v] + more);
    }
    return;
  }
  float value[kPanel];
  for (int v = 0; v < kVec; ++v) store(value + v * kLanes, y[v]);
  for (long i = 0; i < left; ++i) a.y[at + i] = value[i] + (a.residual ? a.residual[at + i] : 0.0f);
}

// Applies bias and epilogue to the complete sums [rows][32] of a pair of panels, and writes computed rows
// first .. first+rows-1.
static inline void finish_block(const LinearArgs& a, int first, int rows, long pair, float* sums) {
  add_low_rank_block(a, first, rows, pair, sums);
  for (int r = 0; r < rows; ++r, sums += 2 * kPanel) {
    F left[1][kVec], right[1][kVec];
    for (int v = 0; v < kVec; ++v) left[0][v] = load(sums + v * kLanes), right[0][v] = load(sums + kPanel + v * kLanes);
    add_bias<1>(a, 2 * pair, left);
    if (2 * pair + 1 < a.shape.panels()) add_bias<1>(a, 2 * pair + 1, right);
    if (a.shape.gated()) {
      for (int v = 0; v < kVec; ++v) left[0][v] = activation(a, left[0][v]) * right[0][v];
      write_columns(a, first + r, pair * kPanel, left[0]);
    } else {
      write_columns(a, first + r, 2 * pair * kPanel, left[0]);
      if ((2 * pair + 1) * kPanel < a.shape.out) write_columns(a, first + r, (2 * pair + 1) * kPanel, right[0]);
    }
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
