// Linear: y = epilogue(norm(x) W^T + bias), with weights in the packed layout of weight_format.h.
// kernels/reference.py (linear) defines it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu_features.h"
#include "linear/low_rank.h"
#include "linear/weight_format.h"

namespace edgellama {

enum class Epilogue : int {
  none = 0,
  residual_add = 1,
  swiglu = 2,  // silu(gate) * up
  geglu = 3,   // gelu(gate) * up, with the tanh approximation of GELU
};

struct LinearShape {
  Format format = Format::f32;
  Epilogue epilogue = Epilogue::none;
  int rows = 0, tokens = 0;     // B, S
  int in = 0, out = 0;          // K, and the columns of y
  bool logits = false;          // y holds logits
  bool last_only = false;       // y holds only the last valid token of each row: [B, out]
  float eps = 0;                // of RMSNorm
  float softcap = 0;            // y becomes softcap * tanh(y / softcap), before the residual; 0: it does not

  bool gated() const { return epilogue == Epilogue::swiglu || epilogue == Epilogue::geglu; }
  // Whether rows of many tokens have coarse groups of activations. Logits do not: they are computed for single tokens.
  bool rounds() const { return format > Format::bf16 && !last_only && !logits; }
  long panels() const { return panel_count(out) * (gated() ? 2 : 1); }  // in the weight
};

struct LinearArgs {
  LinearShape shape;
  const float* x = nullptr;         // [B, S, K]
  const uint8_t* weight = nullptr;  // packed
  const float* gamma = nullptr;     // [K], multiplies x / rms(x); nullptr: no norm
  const float* bias = nullptr;      // [16 * panels()] or nullptr
  const float* residual = nullptr;  // [B, S, out] with Epilogue::residual_add
  const int32_t* length = nullptr;  // [B], each 0..S
  float* y = nullptr;               // [B, S, out], or [B, out]

  const LowRank* const* low_rank = nullptr;  // [B]: each row's low-rank addition or nullptr; nullptr: no row has one
  int most_rank = 0;                         // the largest rank of these
  float* projected = nullptr;                // [count, most_rank]: memory for the kernel

  // choose_rows sets these.
  const int32_t* source = nullptr;  // [count]: the row of x that each computed row reads
  const int32_t* target = nullptr;  // [count]: the row of y and residual that it writes
  int count = 0;                    // computed rows: the valid tokens
  int rounded = 0;                  // the first so many of them have coarse groups of activations

  uint8_t* scratch = nullptr;  // linear_scratch_bytes() bytes, aligned to 64
};

// A row of more tokens in a call than this (prefill) has coarse groups of activations with integer weights (simd/dot.h).
// Decoding and the verification of guesses, in a batch or not, have fewer. The number of rows has no influence, so that
// a row's result does not depend on the others.
constexpr int kFineTokens = 16;

// Bytes of a row of activations in the form that the row kernels read: floats for the float formats; for the others
// groups of 32 integers (64 bytes each), then the scale and the sum of each group.
static inline long prepared_row_bytes(Format format, long k) {
  return format <= Format::bf16 ? padded_k(k) * 4 : group_count(k) * 64 + round_up(group_count(k) * 8, 64);
}

// Bytes of the row kernels' scratch (linear_rows.h): the prepared rows, once for all threads or, if they are few, once
// for each thread; then one line (a row of floats) for each thread.
struct RowScratch {
  static constexpr long kAlone = 8192;  // up to so many elements in all rows
  bool alone;  // each thread prepares its own copy, which costs less than a barrier
  long rows, line;
  RowScratch(Format format, int count, long k)
      : alone(count * padded_k(k) <= kAlone), rows(count * prepared_row_bytes(format, k)), line(padded_k(k) * 4) {}
  long shared() const { return alone ? 0 : rows; }
  long own() const { return line + (alone ? rows : 0); }
};

constexpr int kProjectedRows = 4;  // rows whose products with a low-rank A are computed together (low_rank_rows.h)

// Bytes of the tile kernel's scratch (linear_amx.h): the tiles of all rows; then for each thread unpacked weights, sums
// and a line.
struct TileScratch {
  static constexpr long kMaxDepth = 1536;   // a K up to this is one piece
  static constexpr long kDepth = 1024;      // the pieces of a longer K, so that all rows x kDepth stay in the cache
  static constexpr long kPairsInCache = 8;  // pairs of panels whose sums stay in memory from piece to piece
  long row_tiles, weights, sums, line;
  TileScratch(int count, long k) {
    const long blocks = (count + 31) / 32, depth = padded_k(k);
    const bool whole = depth <= kMaxDepth;
    row_tiles = blocks * 32 * depth * 2;
    weights = (whole ? depth : kDepth) * 32 * 2;
    sums = (whole ? 1 : blocks * kPairsInCache) * 32 * 32 * 4;
    line = depth * 4;
  }
  long shared() const { return row_tiles; }
  long own() const { return weights + sums + line; }
};

// Bytes of linear_many.h's scratch: all rows; then for each thread a widened pair of panels, sums and a line.
struct WideScratch {
  static constexpr long kMaxDepth = 2048, kDepth = 1024, kPairsInCache = 8;  // as in TileScratch
  long depth, pairs;  // K of a piece, rounded up; pairs of panels whose sums stay in memory
  long rows, weights, sums, line;
  WideScratch(int count, long k) {
    constexpr long kMaxBlock = 16;  // the largest block of rows
    const bool whole = padded_k(k) <= kMaxDepth;
    depth = whole ? padded_k(k) : kDepth;
    pairs = whole ? 1 : kPairsInCache;
    rows = count * round_up(group_count(k) * 68, 64);
    weights = depth * 32 * 2 + depth / kGroup * 32 * 4;
    sums = (whole ? kMaxBlock : count * pairs) * 32 * 4;
    line = padded_k(k) * 4;
  }
  long shared() const { return rows; }
  long own() const { return weights + sums + line; }
};

// Bytes of linear_bytes.h's scratch: all rows with their fine groups; then for each thread a pair of panels and its
// scales, sums and a line.
struct ByteScratch {
  static constexpr long kMaxDepth = 2048, kDepth = 1024, kPairsInCache = 8;  // as in TileScratch
  long depth, pairs;   // as in WideScratch
  long row, fine_row;  // of one row
  long rows, fine, weights, scales, sums, line;
  ByteScratch(int count, long k) {
    constexpr long kMaxBlock = 16;  // the largest block of rows
    const bool whole = padded_k(k) <= kMaxDepth;
    depth = whole ? padded_k(k) : kDepth;
    pairs = whole ? 1 : kPairsInCache;
    row = group_count(k) * (kGroup + 8);
    fine_row = 4 + (group_count(k) * 2 / 3 + 1) * (kGroup + 12);  // kHeavy allows (groups + 2) / 3 fine ones
    rows = round_up(count * row, 64);
    fine = round_up(count * fine_row, 64);
    weights = depth * 32;
    scales = depth / kGroup * 32 * 4;
    sums = (whole ? kMaxBlock : count * pairs) * 32 * 4;
    line = padded_k(k) * 4;
  }
  long shared() const { return rows + fine; }
  long own() const { return weights + scales + sums + line; }
};

// Whether a kernel can run with these sizes: each is at least 1 and at most kMostSize, and so are the positions.
EDGELLAMA_EXPORT bool linear_sizes_fit(const LinearShape& shape);

// The first row whose length is not in 0..tokens, or -1.
EDGELLAMA_EXPORT int wrong_length(const int32_t* length, int rows, int tokens);

// The arguments of a Linear over plain arrays, as the C interface gives them; `softcap` and `last_only` are not set.
LinearArgs plain_linear(int format, int epilogue, int rows, int tokens, int in, int out, float eps, const float* x,
                        const void* weight, const float* gamma, const float* bias, const float* residual,
                        const int32_t* length, float* y);

// Whether run_linear can run with these arguments: the sizes, the arrays that are not optional, and the lengths.
bool linear_args_fit(const LinearArgs& args);

// Bytes of scratch for up to `count` computed rows on `threads` threads, enough for every variant.
size_t linear_scratch_bytes(const LinearShape& shape, int count, int threads);

// Chooses the rows that a call computes: sets args.count, args.rounded, args.source and args.target. The last two point
// into `index`, which has 2 * rows * tokens integers.
void choose_rows(LinearArgs& args, int32_t* index);

// Runs one Linear on the thread pool. The caller has checked that each length is in 0..S.
EDGELLAMA_EXPORT void run_linear(LinearArgs args, Isa isa, int threads);

}  // namespace edgellama
