// AMX's tile registers, configured for the life of an object: eight tiles of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace edgellama::EDGELLAMA_ISA {

class TileSession {
 public:
  TileSession() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");  // GCC assumes that the intrinsic reads only the first 8 bytes
    _tile_loadconfig(&config);
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

}  // namespace edgellama::EDGELLAMA_ISA
