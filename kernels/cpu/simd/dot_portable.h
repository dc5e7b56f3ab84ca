// Integer dot products of 16 columns in plain C++. See dot.h.
#pragma once

namespace edgellama::EDGELLAMA_ISA {

struct Quad {
  int16_t w[64];
};
struct Sum {
  int32_t s[16];
};
constexpr int kByteBias = 0;  // load_quad gives int8 weights as q, signed
constexpr int kRowBlock = 4;  // rows that share one read of a panel
constexpr int kTogether = 1;  // rows whose sums are in registers at the same time

static inline Quad load_quad(const uint8_t* p) {
  Quad quad;
  for (int i = 0; i < 64; ++i) quad.w[i] = static_cast<int16_t>(p[i] - 128);
  return quad;
}
static inline void load_nibbles(const uint8_t* p, Quad& first, Quad& second) {
  for (int i = 0; i < 64; ++i) {
    first.w[i] = p[i] & 15;
    second.w[i] = p[i] >> 4;
  }
}
static inline Sum start_sum(int32_t value) {
  Sum sum;
  for (int i = 0; i < 16; ++i) sum.s[i] = value;
  return sum;
}
static inline void dot(Sum& sum, const Quad& quad, const Activations& a, int k) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) sum.s[i] += quad.w[4 * i + j] * a.word[k + j];
}
static inline void to_float(const Sum& sum, F out[4]) {
  for (int i = 0; i < 16; ++i) out[i / 4][i % 4] = static_cast<float>(sum.s[i]);
}
static inline void store_activations(Activations& a, int k, I q) {
  for (int i = 0; i < 4; ++i) a.word[k + i] = static_cast<int16_t>(q[i]);
}
static inline void load_int4_scales(const uint16_t* p, F d[4], F z[4]) {
  for (int i = 0; i < 16; ++i) {
    d[i / 4][i % 4] = f16_to_float(static_cast<uint16_t>((p[i] & ~63u) >> 1));
    z[i / 4][i % 4] = static_cast<float>(p[i] & 63u) * 0.25f;
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
