// FusedAttention on a CPU: rotary embedding, cache write in place, causal grouped-query attention.
// kernels/reference.py (fused_attention, fused_attention_int8) says what it means; the letters are the same:
// B rows, S tokens per row in this call, H query heads, G key/value heads, D head size, C cache capacity.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/export.h"

namespace edgellama {

enum class CacheType : int32_t {
  f32 = 0,
  f16 = 1,
  s8 = 2,  // with one float16 scale for each row, head and position
};

// Plain sizes and pointers, owned by the caller. Every array is dense.
struct AttentionArgs {
  int32_t rows, tokens;        // B, S
  int32_t heads, groups;       // H, G: H is a multiple of G
  int32_t head_dim, capacity;  // D (even), C
  int32_t positions;           // P: rows of the rotary tables, P >= C
  int32_t window;              // how many of the latest positions a token sees, itself included; 0: all
  float scale;                 // multiplies q.k
  CacheType cache;
  const float* qkv;              // [B, S, (H + 2G) * D]: query heads, key heads, value heads
  const float *cos, *sin;        // [P, D/2]
  const int32_t *start, *length;  // [B]
  void *k_cache, *v_cache;       // [B, G, C, D] of the cache's type
  uint16_t *k_scale, *v_scale;   // [B, G, C] float16; CacheType::s8 only
  float* out;                    // [B, S, H * D]; rows at and past length[b] become zero
  // attention_scratch_bytes() bytes at a multiple of 64, zero-filled once before the first call. One call at a time.
  void* scratch;
  int32_t threads;  // how many threads the scratch was sized for
};

// Bytes of scratch for these sizes (rows, heads, groups, head_dim, capacity, threads), any number of tokens.
size_t attention_scratch_bytes(const AttentionArgs& args);

// This thread's scratch for attention: not the memory of scratch(), and zero-filled whenever the sizes change. Valid
// until this thread calls it again.
uint8_t* attention_scratch(const AttentionArgs& args);

// What is wrong with the sizes, then with the values of start and length; empty when they fit. The kernels check
// nothing themselves: ask the first when the sizes become known, the second before each call.
EDGELLAMA_EXPORT std::string attention_size_error(const AttentionArgs& args);
EDGELLAMA_EXPORT std::string attention_range_error(const AttentionArgs& args);

}  // namespace edgellama
