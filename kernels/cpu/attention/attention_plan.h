// How one call of FusedAttention is divided into jobs, and the layout of its scratch.
//
// A row with one token (decode) is limited by reading the cache. It is divided into groups and ranges of positions
// ("parts"); the last job of a (row, group) joins their partial sums (flash-decoding, arXiv:2311.01282). A row with
// few tokens is divided into groups and tokens, and each job computes what a decode of its token would: speculative
// decoding checks several tokens at once, and must find exactly the scores of single steps. A row with more tokens
// (prefill) is divided into groups and blocks of queries. The parts depend only on the positions, so the result does not
// depend on the number of threads.
#pragma once

#include "attention/attention.h"
#include "base/rounding.h"

namespace edgellama {

constexpr long kMaxPart = 512;   // positions in a decode part
constexpr long kMinPart = 64;    // joining shorter parts costs more than they save
constexpr long kPartsWanted = 8;
constexpr long kKeyBlock = 64;   // positions that prefill processes at a time
constexpr long kMaxStrips = 8;   // strips of queries in a prefill job
constexpr long kMaxStrip = 32;   // queries in a strip: two vectors of the widest variant
constexpr long kCacheLine = 64;
constexpr long kFewTokens = 8;   // rows with up to so many tokens are computed as decode steps

// Positions in each part of a decode over `visible` positions.
static inline long part_length(long visible) {
  const long wanted = round_up(divide_up(visible, kPartsWanted), kMinPart);
  return wanted < kMaxPart ? wanted : kMaxPart;
}

// The largest number of parts for any number of visible positions up to `capacity`.
static inline long max_parts(long capacity) {
  const long parts = divide_up(capacity, kMaxPart);
  return parts > kPartsWanted ? parts : kPartsWanted;
}

// The scratch: counters (bytes), then the decode parts' partial results (floats), then each thread's memory (floats).
// Every section starts on a cache line.
struct ScratchLayout {
  long padded_dim;       // D, rounded up so that every variant can use whole tiles
  long partial_stride;   // floats of one head's partial result: D sums, the maximum, the normaliser
  long part_count;       // the largest number of parts of a (row, group)
  long counter_bytes;    // one ticket, and one arrival count for each (row, group)
  long partial_floats, thread_floats;

  explicit ScratchLayout(const AttentionArgs& a) {
    padded_dim = round_up(a.head_dim, 32);
    partial_stride = round_up(a.head_dim + 2, 16);
    part_count = max_parts(a.capacity);
    counter_bytes = round_up(kCacheLine + long(sizeof(int32_t)) * a.rows * a.groups, kCacheLine);
    partial_floats = long(a.rows) * a.heads * part_count * partial_stride;
    const long queries = kMaxStrips * kMaxStrip;
    const long prefill = 2 * padded_dim * queries         // queries and sums
                         + 2 * kKeyBlock * kMaxStrip      // scores and probabilities
                         + 2 * padded_dim * kKeyBlock     // keys and values
                         + 4 * queries                    // maxima, normalisers, first and last visible position
                         + padded_dim * kMaxStrip;        // queries or results before or after a transpose
    const long share = a.heads / a.groups;
    const long decode = share * padded_dim + share * (kMaxPart + kMaxStrip) + 2 * padded_dim  // part_work()
                        + share * part_count * partial_stride;  // the partial results of one of few tokens
    thread_floats = round_up(prefill > decode ? prefill : decode, 16);
  }
  size_t bytes(long threads) const {
    return size_t(counter_bytes) + sizeof(float) * (size_t(partial_floats) + size_t(thread_floats) * threads);
  }
};

}  // namespace edgellama
