// A row of the embedding is one column of a panel. The read is strided, but a call reads few rows.
#include "layer/embedding.h"

#include "base/half.h"
#include "base/pool.h"

namespace edgellama::EDGELLAMA_ISA {
namespace {

// Scale number `group` of a column of a panel.
uint16_t scale_at(const uint8_t* panel, long group, int column) {
  return reinterpret_cast<const uint16_t*>(panel)[group * kPanel + column];
}

void unpack_row(Format format, const uint8_t* panel, int column, long k, float* y) {
  const uint8_t* data = panel + scale_bytes(format, k);
  switch (format) {
    case Format::f32:
      for (long i = 0; i < k; ++i) y[i] = reinterpret_cast<const float*>(data)[i * kPanel + column];
      return;
    case Format::bf16:
      for (long i = 0; i < k; ++i)
        y[i] = bf16_to_float(reinterpret_cast<const uint16_t*>(data)[(i / 2 * kPanel + column) * 2 + i % 2]);
      return;
    case Format::int8:
      for (long i = 0; i < k; ++i) {
        const float d = f16_to_float(scale_at(panel, i / kGroup, column));
        y[i] = d * static_cast<float>(data[(i / 4 * kPanel + column) * 4 + i % 4] - 128);
      }
      return;
    case Format::int4:
    case Format::q4_0:
      for (long i = 0; i < k; ++i) {
        const uint16_t cell = scale_at(panel, i / kGroup, column);
        const bool own_zero = format == Format::int4;
        const float d = f16_to_float(own_zero ? static_cast<uint16_t>((cell & ~63u) >> 1) : cell);
        const float zero = own_zero ? static_cast<float>(cell & 63u) * 0.25f : 8.0f;
        const uint8_t both = data[(i / 8 * kPanel + column) * 4 + i % 4];
        y[i] = d * (static_cast<float>(i % 8 < 4 ? both & 15 : both >> 4) - zero);
      }
      return;
    case Format::w4g32:
    case Format::w4g64:
    case Format::w4g128:
      for (long i = 0; i < k; ++i) {
        const long group = i / kGroup / groups_per_scale(format);
        const float d = f16_to_float(scale_at(panel, group, column));
        const float zero = static_cast<float>(zero_points(format, panel, k)[group * kPanel + column]) * 0.25f;
        const uint8_t both = data[(i / 8 * kPanel + column) * 4 + i % 4];
        y[i] = d * (static_cast<float>(i % 8 < 4 ? both & 15 : both >> 4) - zero);
      }
      return;
  }
}

}  // namespace

void embedding(const EmbeddingArgs& a, Worker& me) {
  const size_t panel_size = panel_bytes(a.format, a.width);
  const Range part = share(me, static_cast<long>(a.rows) * a.tokens);
  for (long i = part.begin; i < part.end; ++i) {
    if (i % a.tokens >= a.length[i / a.tokens]) continue;
    const uint8_t* panel = a.weight + a.ids[i] / kPanel * panel_size;
    unpack_row(a.format, panel, a.ids[i] % kPanel, a.width, a.y + i * a.width);
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
