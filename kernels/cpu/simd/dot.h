// Quantized activations, and each variant's integer dot products of weights with them.
//
// 32 activations along K share a float scale. Each is a 16-bit integer; the largest magnitude is 127 * 256 steps.
// Variants with byte dot products store it as an upper and a lower signed byte, the others as a 16-bit word. Quantized
// to 8 bits, activations would lose as much as 8-bit weights do; with 16 bits the loss is negligible. The second
// product costs nothing in decode, which waits for memory. A group with a NaN or an infinity has the scale NaN, and so
// every result of its row becomes NaN.
//
// Each dot_*.h defines, for 16 columns (one panel of weights, linear/weight_format.h):
//   Quad                  4 steps of K of the weights, widened as dot() needs them
//   load_quad             a Quad from 64 bytes of int8 weights, which then are q + kByteBias
//   load_nibbles          two Quads from 64 bytes of 4-bit weights
//   Sum, start_sum, dot   16 running integer sums: sum += quad . activations [k, k + 4)
//   to_float              the sums as floats
//   store_activations     kLanes quantized activations into a group
//   load_int4_scales      the scale d and the zero point z of 16 columns of int4
// and for many rows, where the variant has them, dot products of 16-bit words (dot_words and the functions near it).
#pragma once

#include "simd/simd.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr int kVec = 16 / kLanes;  // float vectors for the 16 columns of a panel

struct alignas(64) Activations {  // one group of 32 along K
  union {
    struct {
      int8_t hi[32], lo[32];
    } plane;
    int16_t word[32];
  };
};

}  // namespace edgellama::EDGELLAMA_ISA

#if defined(__AVX512F__)
#include "simd/dot_avx512.h"
#elif defined(__AVX2__)
#include "simd/dot_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd/dot_neon.h"
#else
#include "simd/dot_portable.h"
#endif

namespace edgellama::EDGELLAMA_ISA {

// A row of K activations: its groups, their scales, and the sums of their integers, which the zero points multiply.
struct QuantizedRow {
  Activations* groups;
  float* scale;
  int32_t* sum;

  static QuantizedRow at(uint8_t* memory, long group_count) {
    uint8_t* tail = memory + group_count * 64;
    return {reinterpret_cast<Activations*>(memory), reinterpret_cast<float*>(tail),
            reinterpret_cast<int32_t*>(tail + group_count * 4)};
  }
};

// One group of 32 activations: x = q * scale, |q| at most 32512. If one is not finite, scale is NaN and q is 0.
struct QuantizedGroup {
  I q[32 / kLanes];
  float scale;
};

static inline QuantizedGroup quantize_group(const float* x) {
  constexpr int kParts = 32 / kLanes;
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  F part[kParts], top = broadcast(0.0f);
  for (int i = 0; i < kParts; ++i) {
    part[i] = load(x + i * kLanes);
    top = larger_magnitude(top, part[i]);
  }
  const float largest = largest_magnitude(top);
  QuantizedGroup group;
  if (!is_finite(largest)) {
    for (int i = 0; i < kParts; ++i) group.q[i] = I{};
    group.scale = __builtin_nanf("");
    return group;
  }
  const float steps = largest > 1e-30f ? 32512.0f / largest : 0.0f;
  group.scale = largest > 1e-30f ? largest / 32512.0f : 0.0f;
  for (int i = 0; i < kParts; ++i) group.q[i] = (I)fma(part[i], broadcast(steps), magic) - (I)magic;
  return group;
}

static inline void quantize_row(const float* x, long group_count, QuantizedRow row) {
  for (long g = 0; g < group_count; ++g) {
    const QuantizedGroup group = quantize_group(x + g * 32);
    I total = {};
    for (int i = 0; i < 32 / kLanes; ++i) {
      total += group.q[i];
      store_activations(row.groups[g], i * kLanes, group.q[i]);
    }
    row.scale[g] = group.scale;
    row.sum[g] = static_cast<int32_t>(sum(__builtin_convertvector(total, F)));  // exact: below 2^24
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
