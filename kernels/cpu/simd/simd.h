// The float vectors that the kernels use. F is the widest float vector of the variant that is compiled, with kLanes
// floats; + - * / work on it as on a float (GCC and Clang vector types). Only files that are compiled once for each
// instruction set include this header. All functions are static, so that the linker cannot use one variant's code for
// another.
#pragma once

#include "base/half.h"

#if defined(__AVX512F__)
#include "simd/simd_avx512.h"
#elif defined(__AVX2__)
#include "simd/simd_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd/simd_neon.h"
#else
#include "simd/simd_portable.h"
#endif

namespace edgellama::EDGELLAMA_ISA {

constexpr int kLanes = sizeof(F) / sizeof(float);
typedef int32_t I __attribute__((vector_size(sizeof(F))));

// max() and max_lane() may lose a NaN. These two do not: they compare the bits of magnitudes, and as integers a NaN is
// above infinity, and infinity is above every finite number. They cost no more than max() does.

// The larger magnitude in each lane. `most` is 0 or a result of this function.
static inline F larger_magnitude(F most, F x) {
  const I a = (I)most, b = (I)x & 0x7fffffff;
  return (F)(a > b ? a : b);
}
// The largest lane of a result of larger_magnitude().
static inline float largest_magnitude(F most) { return bits_to_float(static_cast<uint32_t>(max_bits(most))); }

static inline bool is_finite(float x) { return (float_to_bits(x) & 0x7f800000u) != 0x7f800000u; }

// e^x with an error of at most 2 units in the last place. Arguments are clipped to [-87, 88].
static inline F exp(F x) {
  x = min(max(x, broadcast(-87.0f)), broadcast(88.0f));
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const F shifted = fma(x, broadcast(1.44269504f), magic);
  const F n = shifted - magic;
  F r = fma(n, broadcast(-0.693359375f), x);  // ln 2 in two parts (Cody and Waite)
  r = fma(n, broadcast(2.12194440e-4f), r);
  F p = broadcast(1.3888889e-3f);
  p = fma(p, r, broadcast(8.3333333e-3f));
  p = fma(p, r, broadcast(4.1666667e-2f));
  p = fma(p, r, broadcast(1.6666667e-1f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  const I exponent = ((I)shifted + 127) << 23;  // the shift drops the upper bits, which come from `magic`
  return p * (F)exponent;
}

}  // namespace edgellama::EDGELLAMA_ISA
