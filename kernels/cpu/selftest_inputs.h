// The inputs of the test driver selftest.cpp: random numbers, buffers of exactly the needed size, packed matrices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <random>
#include <vector>

#include "base/kernels.h"
#include "base/pool.h"
#include "linear/pack.h"

namespace edgellama {

inline std::vector<float> gaussian(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& value : x) value = normal(random);
  return x;
}

// Bytes aligned to 64, without padding at the end.
struct Bytes {
  explicit Bytes(size_t n) : data(static_cast<uint8_t*>(::operator new(n, std::align_val_t{64}))), size(n) {}
  ~Bytes() { ::operator delete(data, std::align_val_t{64}); }
  Bytes(const Bytes&) = delete;
  uint8_t* const data;
  const size_t size;
};

struct Matrix {
  long n, k;
  Format format;
  Bytes packed;
  Matrix(long n_, long k_, Format f, Isa isa) : n(n_), k(k_), format(f), packed(packed_bytes(f, n_, k_)) {
    const std::vector<float> w = gaussian(static_cast<size_t>(n * k), 1);
    std::vector<uint16_t> scales;
    std::vector<int8_t> zeros;
    std::vector<uint8_t> q;
    PackArgs args;
    args.format = f;
    args.n = n;
    args.k = k;
    args.w = w.data();
    if (f >= Format::q4_0) {  // packed only from quantized weights
      args.k = padded_k(k);
      scales.assign(static_cast<size_t>(n * scale_count(f, k)), 0x2c00);  // 1/16
      for (size_t i = 0; i < scales.size() && is_w4(f); ++i) {
        scales[i] = static_cast<uint16_t>(scales[i] + i * 37 % 512);
        zeros.push_back(static_cast<int8_t>(i * 11 % 65));
      }
      if (is_w4(f)) args.zeros = zeros.data();
      for (long i = 0; i < n * args.k; ++i) q.push_back(static_cast<uint8_t>(i * 7 % 16));
      args.w = nullptr;
      args.scales = scales.data();
      args.q = q.data();
    }
    args.out = packed.data;
    ThreadPool::instance().run(2, [&](Worker& me) { kernels(isa)->pack(args, me); });
  }
};

}  // namespace edgellama
