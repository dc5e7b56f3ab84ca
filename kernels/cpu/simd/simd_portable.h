// The vector functions without any instruction-set extension: 4 floats in the compiler's vector type.
#pragma once

namespace edgellama::EDGELLAMA_ISA {

typedef float F __attribute__((vector_size(16)));

static inline F broadcast(float x) { return F{x, x, x, x}; }
static inline F load(const float* p) { return F{p[0], p[1], p[2], p[3]}; }
static inline void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
static inline F load_f16(const uint16_t* p) {
  return F{f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
}
static inline void store_f16(uint16_t* p, F x) {
  for (int i = 0; i < 4; ++i) p[i] = float_to_f16(x[i]);
}
static inline F load_bf16(const uint16_t* p) {
  return F{bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
}
static inline F load_s8(const int8_t* p) { return F{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
static inline F fma(F a, F b, F c) { return a * b + c; }
static inline F max(F a, F b) { return a > b ? a : b; }
static inline F min(F a, F b) { return a < b ? a : b; }
static inline float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
static inline float max_lane(F x) {
  const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
  return a > b ? a : b;
}
static inline int32_t max_bits(F x) {
  int32_t bits[4];
  std::memcpy(bits, &x, sizeof bits);
  const int32_t a = bits[0] > bits[1] ? bits[0] : bits[1], b = bits[2] > bits[3] ? bits[2] : bits[3];
  return a > b ? a : b;
}

}  // namespace edgellama::EDGELLAMA_ISA
