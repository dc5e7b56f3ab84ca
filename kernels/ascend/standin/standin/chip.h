// What each chip offers, as CANN's public documentation states it; L1 and L0C of the 310P and 310B, which it does not
// state, as asc-devkit's matmul_config_utils.h has them. The chip is chosen at compile time with the macro that the
// device compiler sets too: __NPU_ARCH__ = 2201 (910B), 2002 (310P), 3002 (310B).
#ifndef EDGELLAMA_STANDIN_CHIP_H
#define EDGELLAMA_STANDIN_CHIP_H

#include <cstddef>

#ifndef __NPU_ARCH__
#error "compile the stand-in with -D__NPU_ARCH__=2201, 2002 or 3002"
#endif

namespace standin {

struct ChipSpec {
    const char* name;
    int arch;
    bool splitCores;        // cube and vector instructions run on different cores
    int cubeCores;
    int vectorCores;        // equals cubeCores where the cores are unified
    std::size_t ub, l1, l0a, l0b, l0c;  // bytes of local memory
    bool dataCopyPad;
    bool brcb;
    bool hardSyncAll;
    bool softSyncAll;
    bool isasiFlags;        // free SetFlag/WaitFlag; TQueSync is there on every chip
    bool bfloat16;
    bool castFloatToHalfRounding;  // float -> half with RINT, FLOOR, CEIL, ROUND, TRUNC
    bool reduceOnlyValue;   // ReduceOrder::ORDER_ONLY_VALUE
    bool reduceIndexValue;  // ReduceOrder::ORDER_INDEX_VALUE
    bool matmulLocalOperands;  // Matmul operands in local memory (VECIN, VECOUT)
    bool matmulFloatOperands;
    bool matmulNeedsUb;     // Matmul needs SetLocalWorkspace to reach global memory
};

constexpr std::size_t kKiB = 1024;

#if __NPU_ARCH__ == 2201
// UB and L1: the 256 bytes that fused cube-and-vector kernels lose to the framework are taken off.
constexpr ChipSpec kChip{"910B", 2201, true, 20, 40, 192 * kKiB - 256, 512 * kKiB - 256, 64 * kKiB, 64 * kKiB,
                         128 * kKiB, true, true, true, true, true, true, true, true, true, true, true, false};
#elif __NPU_ARCH__ == 2002
constexpr ChipSpec kChip{"310P", 2002, false, 8, 8, 256 * kKiB, 1024 * kKiB, 64 * kKiB, 64 * kKiB,
                         256 * kKiB, false, true, false, true, true, false, false, false, true, true, false, true};
#elif __NPU_ARCH__ == 3002
constexpr ChipSpec kChip{"310B", 3002, false, 1, 1, 256 * kKiB, 1024 * kKiB, 64 * kKiB, 64 * kKiB,
                         128 * kKiB, true, false, false, false, false, true, true, true, false, false, true, false};
#else
#error "unknown __NPU_ARCH__: the stand-in knows 2201 (910B), 2002 (310P) and 3002 (310B)"
#endif

}  // namespace standin

#endif
