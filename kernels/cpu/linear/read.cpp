#include "linear/read.h"

#include <cstring>

#include "simd/simd.h"

namespace edgellama::EDGELLAMA_ISA {

uint32_t read(const uint8_t* data, long bytes, long ahead) {
  constexpr int kChains = 4;  // so that no load waits for the operation of the one before
  I seen[kChains] = {};
  for (const uint8_t* const end = data + bytes; data < end; data += kReadBlock) {
    if (ahead)
#pragma GCC unroll 4
      for (long i = 0; i < kReadBlock; i += 64) __builtin_prefetch(data + ahead + i, 0, 3);
#pragma GCC unroll 16
    for (long i = 0; i < kReadBlock; i += sizeof(I)) {
      I next;
      std::memcpy(&next, data + i, sizeof next);
      seen[i / static_cast<long>(sizeof(I)) % kChains] ^= next;
    }
  }
  const I all = seen[0] ^ seen[1] ^ seen[2] ^ seen[3];
  uint32_t words[kLanes], found = 0;
  std::memcpy(words, &all, sizeof words);
  for (const uint32_t word : words) found ^= word;
  return found;
}

}  // namespace edgellama::EDGELLAMA_ISA
