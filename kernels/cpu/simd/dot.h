// Activations for the integer kernels, and the variant's dot products over them.
//
// 32 activations share a float scale and keep 16 bits: 127 * 256 steps to their largest magnitude. Variants with
// byte dot products hold them as an upper and a lower signed byte, the others as 16-bit words. So the activations
// lose next to nothing (an 8-bit activation would lose as much as an 8-bit weight), and decode, which waits for
// memory, has the time for the second product.
#pragma once

#include "simd/simd.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr int kVec = 16 / kLanes;  // vectors of floats for one panel's 16 columns

struct alignas(64) Activations {  // one group of 32
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

// A row of K activations: its groups, their scales, and the sums of their integers (for the zero points).
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

// One group of 32 in 16-bit steps of its own scale.
struct QuantizedGroup {
  I q[32 / kLanes];
  float scale;
};

static inline QuantizedGroup quantize_group(const float* x) {
  constexpr int kParts = 32 / kLanes;
  const F magic = broadcast(12582912.0f);  // rounds to an integer, kept in the low bits
  F part[kParts], top = broadcast(0.0f);
  for (int i = 0; i < kParts; ++i) {
    part[i] = load(x + i * kLanes);
    top = max(top, max(part[i], broadcast(0.0f) - part[i]));
  }
  const float largest = max_lane(top);
  const float steps = largest > 1e-30f ? 32512.0f / largest : 0.0f;
  QuantizedGroup group;
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
    row.sum[g] = static_cast<int32_t>(sum(__builtin_convertvector(total, F)));  // below 2^24: exact
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
