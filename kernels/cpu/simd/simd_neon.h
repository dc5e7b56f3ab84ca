// The vector functions with Arm Neon: 4 floats.
#pragma once

#include <arm_neon.h>

namespace edgellama::EDGELLAMA_ISA {

using F = float32x4_t;

static inline F broadcast(float x) { return vdupq_n_f32(x); }
static inline F load(const float* p) { return vld1q_f32(p); }
static inline void store(float* p, F x) { vst1q_f32(p, x); }
static inline F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline void store_f16(uint16_t* p, F x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
static inline F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline F load_s8(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
static inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
static inline F max(F a, F b) { return vmaxq_f32(a, b); }
static inline F min(F a, F b) { return vminq_f32(a, b); }
static inline float sum(F x) { return vaddvq_f32(x); }
static inline float max_lane(F x) { return vmaxvq_f32(x); }
static inline int32_t max_bits(F x) { return vmaxvq_s32(vreinterpretq_s32_f32(x)); }

}  // namespace edgellama::EDGELLAMA_ISA
