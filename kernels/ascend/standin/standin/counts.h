// What the instructions of one core amount to: the basis of a performance model. No time is measured.
#ifndef EDGELLAMA_STANDIN_COUNTS_H
#define EDGELLAMA_STANDIN_COUNTS_H

#include <array>
#include <cstdint>

namespace standin {

// standin_library.py has the same names in the same order (COUNTS).
enum Count {
    kVectorInstructions, kVectorRepeats,  // a repeat is 256 bytes
    kScalarAccesses,                      // GetValue and SetValue
    kVectorBarriers, kFullBarriers,       // PipeBarrier<PIPE_V>, PipeBarrier<PIPE_ALL>
    kLoadBytes, kLoadBursts, kStoreBytes, kStoreBursts,  // DataCopy from and to global memory
    kProducts, kCubeFractals,             // of Matmul; a fractal is 16 x 16 x 16 multiplications
    kCubeBytes, kCubeBursts,              // of Matmul's operands in global memory, each counted once
    kCounts
};
using Counts = std::array<std::int64_t, kCounts>;

}  // namespace standin

#endif
