// Linear for many rows with AMX: unpacks a pair of panels to bfloat16 tiles once, and multiplies all rows by them.
// Activations are rounded to bfloat16 too. Sums are float32.
#pragma once

#include "linear/linear_rows.h"
#include "simd/tile_session.h"

namespace edgellama::EDGELLAMA_ISA {

constexpr long kTileBytes = 1024;  // 16 rows of 64 bytes

// Two steps of 16 columns as bfloat16, with step 0 in the lower half of each 32-bit cell.
static inline __m512i interleave_bf16(__m512 step0, __m512 step1) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(step1, step0));
}

// Writes four steps of 16 columns, q * d - offset, as two rows of a tile.
static inline void unpack_quad(__m512i w, __m512 d, __m512 offset, uint8_t* tile) {
  const __m512i byte = _mm512_set1_epi32(255);
  const __m512 f0 = _mm512_cvtepi32_ps(_mm512_and_si512(w, byte));
  const __m512 f1 = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(w, 8), byte));
  const __m512 f2 = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(w, 16), byte));
  const __m512 f3 = _mm512_cvtepi32_ps(_mm512_srli_epi32(w, 24));
  _mm512_store_si512(tile, interleave_bf16(_mm512_fmsub_ps(f0, d, offset), _mm512_fmsub_ps(f1, d, offset)));
  _mm512_store_si512(tile + 64, interleave_bf16(_mm512_fmsub_ps(f2, d, offset), _mm512_fmsub_ps(f3, d, offset)));
}

// Unpacks groups [first, last) of a panel to bfloat16 tiles. Group g goes to tiles + (g - first) * 2 * kTileBytes.
static inline void unpack_panel(Format format, const uint8_t* panel, long k, long first, long last, uint8_t* tiles) {
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel);
  const uint8_t* data = panel + scale_bytes(format, k);
  for (long g = first; g < last; ++g, tiles += 2 * kTileBytes) {
    if (format == Format::bf16) {
      prefetch(data + g * kTileBytes, kTileBytes);
      for (int i = 0; i < 16; ++i)
        _mm512_store_si512(tiles + 64 * i, _mm512_loadu_si512(data + g * kTileBytes + 64 * i));
      continue;
    }
    F d, offset;
    if (format == Format::int8) {
      prefetch(data + g * 512, 512);
      d = load_f16(scales + g * kPanel);
      offset = d * broadcast(128.0f);
      for (int q = 0; q < 8; ++q) unpack_quad(load_quad(data + g * 512 + 64 * q).w, d, offset, tiles + 128 * q);
      continue;
    }
    prefetch(data + g * 256, 256);
    if (format == Format::int4) {
      F z;
      load_int4_scales(scales + g * kPanel, &d, &z);
      offset = d * z;
    } else if (is_w4(format)) {
      F z;
      const long at = g / groups_per_scale(format) * kPanel;
      d = load_f16(scales + at);
      load_zero_points(zero_points(format, panel, k) + at, &z);
      offset = d * z;
    } else {
      d = load_f16(scales + g * kPanel);
      offset = d * broadcast(8.0f);
    }
    for (int q = 0; q < 4; ++q) {
      Quad a, b;
      load_nibbles(data + g * 256 + 64 * q, a, b);
      unpack_quad(a.w, d, offset, tiles + 256 * q);
      unpack_quad(b.w, d, offset, tiles + 256 * q + 128);
    }
  }
}

// sums [32][32] = or, with `add`, += 32 rows x 2 panels over `steps` groups. a0, a1: the tiles of rows 0..15 and
// 16..31.
static inline void multiply_tiles(const uint8_t* a0, const uint8_t* a1, const uint8_t* b, long steps, float* sums,
                                  bool add) {
  asm volatile("" ::: "memory");  // GCC does not know that the tile loads read the stored data
  if (add) {
    _tile_loadd(0, sums, 128);
    _tile_loadd(1, sums + 16, 128);
    _tile_loadd(2, sums + 16 * 32, 128);
    _tile_loadd(3, sums + 16 * 32 + 16, 128);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long g = 0; g < steps; ++g) {
    _tile_loadd(4, a0 + g * kTileBytes, 64);
    _tile_loadd(6, b + g * 2 * kTileBytes, 64);
    _tile_loadd(7, b + g * 2 * kTileBytes + kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a1 + g * kTileBytes, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * 32, 128);
  _tile_stored(3, sums + 16 * 32 + 16, 128);
  asm volatile("" ::: "memory");
}

// Writes row t as bfloat16 in tile order: [row / 16][group][row % 16][32].
static inline void row_to_tiles(const float* line, int t, long groups, uint8_t* tiles) {
  uint8_t* at = tiles + (t / 16) * groups * kTileBytes + (t % 16) * 64;
  for (long g = 0; g < groups; ++g, at += kTileBytes, line += 32)
    _mm512_store_si512(at, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(line + 16), _mm512_loadu_ps(line)));
}

static inline void linear_tiles(const LinearArgs& a, Worker& me,
                                void (*normalised_row)(const LinearArgs&, int, float*)) {
  const long k = a.shape.in, groups = group_count(k), blocks = (a.count + 31) / 32;
  const TileScratch size(a.count, k);
  uint8_t* const row_tiles = a.scratch;
  uint8_t* const weights = a.scratch + size.shared() + me.index() * size.own();
  float* const sums = reinterpret_cast<float*>(weights + size.weights);
  float* const line = reinterpret_cast<float*>(weights + size.weights + size.sums);

  const Range mine = share(me, blocks * 32);
  for (long t = mine.begin; t < mine.end; ++t) {
    if (t < a.count)
      normalised_row(a, static_cast<int>(t), line);
    else
      std::memset(line, 0, groups * 32 * 4);
    row_to_tiles(line, static_cast<int>(t), groups, row_tiles);
  }
  me.barrier();

  TileSession session;
  const long panels = a.shape.panels();
  const size_t panel_size = panel_bytes(a.shape.format, k);
  const long piece = groups * 32 <= TileScratch::kMaxDepth ? groups : TileScratch::kDepth / 32;
  const long together = groups == piece ? 1 : TileScratch::kPairsInCache;
  const Range pairs = share(me, divide_up(panels, 2));
  for (long first_pair = pairs.begin; first_pair < pairs.end; first_pair += together) {
    const long last_pair = first_pair + together < pairs.end ? first_pair + together : pairs.end;
    for (long g = 0; g < groups; g += piece) {
      const long end = g + piece < groups ? g + piece : groups;
      for (long pair = first_pair; pair < last_pair; ++pair) {
        const uint8_t* panel = a.weight + 2 * pair * panel_size;
        unpack_panel(a.shape.format, panel, k, g, end, weights);
        if (2 * pair + 1 < panels)
          unpack_panel(a.shape.format, panel + panel_size, k, g, end, weights + kTileBytes);
        for (long block = 0; block < blocks; ++block) {
          const uint8_t* tiles = row_tiles + (2 * block * groups + g) * kTileBytes;
          float* const out = together == 1 ? sums : sums + ((pair - first_pair) * blocks + block) * 1024;
          multiply_tiles(tiles, tiles + groups * kTileBytes, weights, end - g, out, g > 0);
          const int rows = static_cast<int>(a.count - block * 32 < 32 ? a.count - block * 32 : 32);
          if (end == groups) finish_block(a, static_cast<int>(block * 32), rows, pair, out);
        }
      }
    }
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
