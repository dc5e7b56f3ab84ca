// FusedAttention on a CPU: rotary embedding, cache write in place, causal grouped-query attention.
// kernels/reference.py (fused_attention) defines it. The letters are the same: B rows, S tokens per row in this call,
// H query heads, G key/value heads, D head size, C cache capacity.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/export.h"

namespace edgellama {

enum class CacheType : int32_t {
  f32 = 0,
  f16 = 1,
  s8 = 2,  // int8, with one float16 scale for each row, head and position
};

// RMSNorm (arXiv:1910.07467) of queries and keys.
enum class HeadNorm : int32_t {
  none = 0,
  each = 1,        // of each head, before the rotary embedding; gammas [D]
  whole = 2,       // of all heads of a token, before the rotary embedding; gammas [H * D] and [G * D]
  after_rope = 3,  // of each head, after the rotary embedding; gammas [D]
};

// Sizes and pointers. The caller owns the arrays. Every array is dense.
struct AttentionArgs {
  int32_t rows, tokens;        // B, S
  int32_t heads, groups;       // H, G: H is a multiple of G
  int32_t head_dim, capacity;  // D (even), C
  int32_t positions;           // P: rows of the rotary tables, P >= C
  int32_t window;              // how many of the latest positions a token sees, its own included; 0: all
  float scale;                 // multiplies q.k; 1 / sqrt(D) in Llama
  CacheType cache;
  float softcap;                 // scores become softcap * tanh(score / softcap); 0: they do not
  float query_beta;              // multiplies the query at position p by 1 + query_beta * log(1 + p / query_period); 0: no
  int32_t query_period;          // with query_beta; p / query_period is a whole number
  HeadNorm norm;
  float norm_eps;                // of these norms
  const float *q_gamma, *k_gamma;  // with a norm
  const float* qkv;              // [B, S, (H + 2G) * D]: query heads, key heads, value heads
  const float *cos, *sin;        // [P, D/2]
  const int32_t *start, *length;  // [B], as in kernels/reference.py
  void *k_cache, *v_cache;       // [B, G, C, D] of the cache's type
  uint16_t *k_scale, *v_scale;   // [B, G, C] float16 bits; only with CacheType::s8
  float* out;                    // [B, S, H * D]; rows at and past length[b] become zero
  // attention_scratch_bytes() bytes, aligned to 64. The caller fills them with zeros once, before the first call. Only
  // one call at a time uses them.
  void* scratch;
  int32_t threads;  // the number of threads for which the scratch was sized
};

// Bytes of scratch for these sizes (rows, heads, groups, head_dim, capacity, threads) and any number of tokens.
size_t attention_scratch_bytes(const AttentionArgs& args);

// This thread's scratch for attention, filled with zeros whenever the sizes change. It is not the memory of scratch().
// Valid until this thread calls it again.
uint8_t* attention_scratch(const AttentionArgs& args);

// What is wrong with the sizes, and what is wrong with the values of start and length; empty if nothing is. The kernels
// check nothing: call the first function when the sizes become known, and the second before each call.
EDGELLAMA_EXPORT std::string attention_size_error(const AttentionArgs& args);
EDGELLAMA_EXPORT std::string attention_range_error(const AttentionArgs& args);

}  // namespace edgellama
