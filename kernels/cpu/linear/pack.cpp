// Packs each panel group by group: reads 16 columns x 32 steps into the cache, quantizes them with one column in each
// lane, and writes them. All arithmetic is single multiplications and additions in a fixed order, so every variant
// gives the same bytes.
#include "linear/pack.h"

#include "base/pool.h"
#include "simd/simd.h"

namespace edgellama::EDGELLAMA_ISA {
namespace {

constexpr int kVec = kPanel / kLanes;

struct Block {  // one group: 32 steps of 16 columns
  alignas(64) float w[kGroup][kPanel];
  alignas(64) uint8_t q[kGroup][kPanel];
  uint16_t scale[kPanel];
  int8_t zero[kPanel];
};

void read_floats(const PackArgs& a, long panel, long group, Block& block) {
  for (int c = 0; c < kPanel; ++c) {
    const long n = panel * kPanel + c;
    for (int i = 0; i < kGroup; ++i) {
      const long k = group * kGroup + i;
      block.w[i][c] = n < a.n && k < a.k ? a.w[n * a.k + k] : 0.0f;
    }
  }
}

void read_quantized(const PackArgs& a, long panel, long group, Block& block) {
  const long scales = scale_count(a.format, a.k), scale = group / groups_per_scale(a.format);
  for (int c = 0; c < kPanel; ++c) {
    const long n = panel * kPanel + c;
    block.scale[c] = n < a.n ? a.scales[n * scales + scale] : 0;
    block.zero[c] = n < a.n && a.zeros ? a.zeros[n * scales + scale] : 0;
    for (int i = 0; i < kGroup; ++i)
      block.q[i][c] = n < a.n ? a.q[n * a.k + group * kGroup + i] : static_cast<uint8_t>(0);
  }
}

inline F absolute(F x) { return max(x, broadcast(0.0f) - x); }
inline F round_to_integer(F x) {  // to nearest, ties to even; |x| < 2^22
  const F magic = broadcast(12582912.0f);
  return (x + magic) - magic;
}
inline F clip(F x, float low, float high) { return min(max(x, broadcast(low)), broadcast(high)); }

void quantize_int8(Block& block) {
  for (int v = 0; v < kVec; ++v) {
    F top = broadcast(0.0f);
    for (int i = 0; i < kGroup; ++i) top = max(top, absolute(load(&block.w[i][v * kLanes])));
    store_f16(block.scale + v * kLanes, top / broadcast(127.0f));
    const F d = load_f16(block.scale + v * kLanes);
    float wide[kLanes], q[kLanes];
    store(wide, d);
    for (int i = 0; i < kGroup; ++i) {
      store(q, clip(round_to_integer(load(&block.w[i][v * kLanes]) / d), -127.0f, 127.0f));
      for (int c = 0; c < kLanes; ++c)
        block.q[i][v * kLanes + c] = static_cast<uint8_t>(wide[c] > 0 ? static_cast<int>(q[c]) + 128 : 128);
    }
  }
}

// Converts between the ten bits of an int4 scale and a float. Codes 32..991 are normal numbers.
constexpr int kLeastCode = 32, kMostCode = 991;
inline F code_to_float(I code) { return (F)((code + (112 << 5)) << 18); }
inline I float_to_code_up(F x) { return ((((I)x) + ((1 << 18) - 1)) >> 18) - (112 << 5); }

// Tries twelve scales, from the one that spans the group's range downwards, and four zero points for each. Keeps the
// pair with the least squared error.
void quantize_int4(Block& block) {
  constexpr int kScales = 12, kZeros = 4;
  for (int v = 0; v < kVec; ++v) {
    F low = broadcast(0.0f), high = broadcast(0.0f);
    for (int i = 0; i < kGroup; ++i) {
      low = min(low, load(&block.w[i][v * kLanes]));
      high = max(high, load(&block.w[i][v * kLanes]));
    }
    I widest = float_to_code_up((high - low) / broadcast(15.0f));
    widest = widest > kMostCode ? I{} + kMostCode : widest;
    F best = broadcast(3.0e38f);
    I best_code = {}, best_zero = {};
    for (int s = 0; s < kScales; ++s) {
      I code = widest - s;
      code = code < kLeastCode ? I{} + kLeastCode : code;
      const F d = code_to_float(code), inverse = broadcast(1.0f) / d;
      const F middle = (broadcast(15.0f) - high * inverse - low * inverse) * broadcast(0.5f);
      const F first = round_to_integer(middle * broadcast(4.0f)) - broadcast(1.0f);
      for (int j = 0; j < kZeros; ++j) {
        const F zero4 = clip(first + broadcast(static_cast<float>(j)), 0.0f, 63.0f);
        const F zero = zero4 * broadcast(0.25f);
        F error = broadcast(0.0f);
        for (int i = 0; i < kGroup; ++i) {
          const F w = load(&block.w[i][v * kLanes]);
          const F q = clip(round_to_integer(w * inverse + zero), 0.0f, 15.0f);
          const F off = (q - zero) * d - w;
          error = error + off * off;
        }
        const I better = (I)(error < best);
        best = min(best, error);
        best_code = (better & code) | (~better & best_code);
        best_zero = (better & (I)zero4) | (~better & best_zero);
      }
    }
    const F d = code_to_float(best_code), inverse = broadcast(1.0f) / d;
    const F zero4 = (F)best_zero, zero = zero4 * broadcast(0.25f);
    for (int c = 0; c < kLanes; ++c)
      block.scale[v * kLanes + c] = static_cast<uint16_t>((best_code[c] << 6) | static_cast<int>(zero4[c]));
    for (int i = 0; i < kGroup; ++i) {
      const F q = clip(round_to_integer(load(&block.w[i][v * kLanes]) * inverse + zero), 0.0f, 15.0f);
      for (int c = 0; c < kLanes; ++c) block.q[i][v * kLanes + c] = static_cast<uint8_t>(q[c]);
    }
  }
}

void write_block(Format format, const Block& block, long group, long k, uint8_t* panel) {
  if (format == Format::f32) {
    std::memcpy(panel + group * sizeof block.w, block.w, sizeof block.w);
    return;
  }
  if (format == Format::bf16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(panel) + group * kGroup * kPanel;
    for (int i = 0; i < kGroup; ++i)
      for (int c = 0; c < kPanel; ++c) out[(i / 2 * kPanel + c) * 2 + i % 2] = float_to_bf16(block.w[i][c]);
    return;
  }
  const long scale = group / groups_per_scale(format);
  std::memcpy(panel + scale * sizeof block.scale, block.scale, sizeof block.scale);
  if (is_w4(format)) {
    uint8_t* const zeros = panel + scale_count(format, k) * sizeof block.scale;
    std::memcpy(zeros + scale * sizeof block.zero, block.zero, sizeof block.zero);
  }
  uint8_t* data = panel + scale_bytes(format, k);
  if (format == Format::int8) {
    data += group * kGroup * kPanel;
    for (int i = 0; i < kGroup; ++i)
      for (int c = 0; c < kPanel; ++c) data[(i / 4 * kPanel + c) * 4 + i % 4] = block.q[i][c];
    return;
  }
  data += group * kGroup * kPanel / 2;
  for (int i = 0; i < kGroup; i += 8)
    for (int j = 0; j < 4; ++j)
      for (int c = 0; c < kPanel; ++c)
        data[(i / 8 * kPanel + c) * 4 + j] = static_cast<uint8_t>(block.q[i + j][c] | (block.q[i + j + 4][c] << 4));
}

}  // namespace

void pack(const PackArgs& a, Worker& me) {
  const long groups = group_count(a.k);
  const Range part = share(me, panel_count(a.n));
  Block block;
  for (long p = part.begin; p < part.end; ++p) {
    uint8_t* panel = a.out + p * panel_bytes(a.format, a.k);
    const long used = used_scale_bytes(a.format, a.k);
    std::memset(panel + used, 0, scale_bytes(a.format, a.k) - used);
    for (long g = 0; g < groups; ++g) {
      if (a.q) {
        read_quantized(a, p, g, block);
      } else {
        read_floats(a, p, g, block);
        if (a.format == Format::int8) quantize_int8(block);
        if (a.format == Format::int4) quantize_int4(block);
      }
      write_block(a.format, block, g, a.k, panel);
    }
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
