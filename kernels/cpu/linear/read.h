// Reads memory as a decode step reads its weights, without computing: the yardstick of `edgellama bench`.
#pragma once

#include <cstdint>

namespace edgellama {

constexpr long kReadBlock = 256;  // bytes: a part of a buffer is a multiple of it

// The exclusive or of the 32-bit words of `bytes` bytes, a multiple of kReadBlock. Requests what lies `ahead` bytes
// further on from memory; with 0 the processor's own prefetcher works alone.
using ReadFunction = uint32_t (*)(const uint8_t* data, long bytes, long ahead);

}  // namespace edgellama
