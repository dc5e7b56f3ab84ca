// Integer dot products of 16 columns with the Arm dot-product instructions. See dot.h.
#pragma once

namespace edgellama::EDGELLAMA_ISA {

struct Quad {
  int8x16_t w[4];
};
struct Sum {
  int32x4_t hi[4], lo[4];
};
constexpr int kByteBias = 0;  // load_quad gives int8 weights as q, signed
constexpr int kRowBlock = 4;  // rows that share one read of a panel
constexpr int kTogether = 1;  // rows whose sums are in registers at the same time

static inline Quad load_quad(const uint8_t* p) {
  Quad quad;
  for (int i = 0; i < 4; ++i) quad.w[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(0x80)));
  return quad;
}
static inline void load_nibbles(const uint8_t* p, Quad& first, Quad& second) {
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t both = vld1q_u8(p + 16 * i);
    first.w[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    second.w[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
  }
}
static inline Sum start_sum(int32_t value) {
  Sum sum;
  for (int i = 0; i < 4; ++i) {
    sum.hi[i] = vdupq_n_s32(0);
    sum.lo[i] = vdupq_n_s32(value);
  }
  return sum;
}
static inline int8x16_t four_bytes(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
static inline void dot(Sum& sum, const Quad& quad, const Activations& a, int k) {
  const int8x16_t hi = four_bytes(a.plane.hi + k), lo = four_bytes(a.plane.lo + k);
  for (int i = 0; i < 4; ++i) {
    sum.hi[i] = vdotq_s32(sum.hi[i], quad.w[i], hi);
    sum.lo[i] = vdotq_s32(sum.lo[i], quad.w[i], lo);
  }
}
static inline void to_float(const Sum& sum, F out[4]) {
  for (int i = 0; i < 4; ++i) out[i] = vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(sum.hi[i], 8), sum.lo[i]));
}
static inline void store_activations(Activations& a, int k, I q) {
  for (int i = 0; i < 4; ++i) {
    const int32_t value = q[i], hi = (value + 128) >> 8;
    a.plane.hi[k + i] = static_cast<int8_t>(hi);
    a.plane.lo[k + i] = static_cast<int8_t>(value - hi * 256);
  }
}
// Dot products of bytes, for the rows of a prefill.
constexpr int kByteRows = 6;         // rows whose sums, two vectors of columns each, fit in registers
constexpr bool kSignedBytes = true;  // int8 weights are turned to q

// sum += w . x, over the four signed bytes in each 32-bit lane.
static inline I dot_bytes(I sum, I w, I x) {
  return (I)vdotq_s32((int32x4_t)sum, vreinterpretq_s8_s32((int32x4_t)w), vreinterpretq_s8_s32((int32x4_t)x));
}
static inline void load_int4_scales(const uint16_t* p, F d[4], F z[4]) {
  for (int i = 0; i < 4; ++i) {
    const uint16x4_t v = vld1_u16(p + 4 * i);
    d[i] = vcvt_f32_f16(vreinterpret_f16_u16(vshr_n_u16(vbic_u16(v, vdup_n_u16(63)), 1)));
    z[i] = vcvtq_f32_u32(vmovl_u16(vand_u16(v, vdup_n_u16(63)))) * broadcast(0.25f);
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
