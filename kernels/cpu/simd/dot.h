// Quantized activations, and each variant's integer dot products of weights with them.
//
// 32 activations along K share a float scale. Each is an integer. In a fine group the largest magnitude is 127 * 256
// steps, in a coarse group 127. kernels/activations.py says which groups are coarse: some of those of a
// row with many tokens (prefill). Quantized to 8 bits, activations lose as much as 8-bit weights do; with 16 bits the
// loss is negligible. The second product of 16 bits costs nothing in decode, which waits for memory. Variants with byte
// dot products store an integer as an upper and a lower signed byte, the others as a 16-bit word. A group with a NaN or
// an infinity has the scale NaN, and so every result of its row becomes NaN.
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

constexpr float kFineSteps = 32512.0f, kCoarseSteps = 127.0f;  // of the largest magnitude in a group
constexpr float kHeavy = 3.0f;  // a group is fine if its largest magnitude exceeds the others' mean so many times

// Writes the largest magnitude of each group of a row to peaks[g * stride], and returns the one above which a group is
// fine. `rounded`: the row has coarse groups.
static inline float find_peaks(const float* x, long group_count, bool rounded, float* peaks, long stride) {
  float total = 0.0f;
  for (long g = 0; g < group_count; ++g, x += 32) {
    F top = broadcast(0.0f);
    for (int i = 0; i < 32; i += kLanes) top = larger_magnitude(top, load(x + i));
    total += peaks[g * stride] = largest_magnitude(top);
  }
  return rounded ? kHeavy / (static_cast<float>(group_count) - 1.0f + kHeavy) * total : -1.0f;
}

// One group of 32 activations: x = q * scale. If one is not finite, scale is NaN and q is 0.
struct QuantizedGroup {
  I q[32 / kLanes];
  float scale;
};

// peak: the largest magnitude in the group, which becomes `all` steps.
static inline QuantizedGroup quantize_group(const float* x, float peak, float all) {
  constexpr int kParts = 32 / kLanes;
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  QuantizedGroup group;
  if (!is_finite(peak)) {
    for (int i = 0; i < kParts; ++i) group.q[i] = I{};
    group.scale = __builtin_nanf("");
    return group;
  }
  const float steps = peak > 1e-30f ? all / peak : 0.0f;
  group.scale = peak > 1e-30f ? peak / all : 0.0f;
  for (int i = 0; i < kParts; ++i) group.q[i] = (I)fma(load(x + i * kLanes), broadcast(steps), magic) - (I)magic;
  return group;
}

// The sum of a group's integers. It is exact: below 2^24.
static inline int32_t total(const QuantizedGroup& group) {
  I all = group.q[0];
  for (int i = 1; i < 32 / kLanes; ++i) all += group.q[i];
  return static_cast<int32_t>(sum(__builtin_convertvector(all, F)));
}

static inline void quantize_row(const float* x, long group_count, bool rounded, QuantizedRow row) {
  const float limit = find_peaks(x, group_count, rounded, row.scale, 1);
  for (long g = 0; g < group_count; ++g) {
    const float peak = row.scale[g];
    const QuantizedGroup group = quantize_group(x + g * 32, peak, peak > limit ? kFineSteps : kCoarseSteps);
    for (int i = 0; i < 32 / kLanes; ++i) store_activations(row.groups[g], i * kLanes, group.q[i]);
    row.scale[g] = group.scale;
    row.sum[g] = total(group);
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
