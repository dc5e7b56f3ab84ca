// What the chip offers. kernels/ascend/standin_library.py writes chip_table.h from the one table of chips
// (kernels/ascend/chips.py), and sets the macro that the device compiler sets too:
// __NPU_ARCH__ = 2201 (910B), 2002 (310P), 3002 (310B).
#ifndef EDGELLAMA_STANDIN_CHIP_H
#define EDGELLAMA_STANDIN_CHIP_H

#include <cstddef>

namespace standin {

struct ChipSpec {
    const char* name;
    int arch;
    bool splitCores;        // cube and vector instructions run on different cores
    int cubeCores;
    int vectorCores;        // equals cubeCores where the cores are unified
    std::size_t ub, l1, l0a, l0b, l0c;  // bytes of local memory, without what CANN keeps for itself
    bool dataCopyPad;
    bool brcb;
    bool hardSyncAll;
    bool softSyncAll;
    bool isasiFlags;        // free SetFlag/WaitFlag; TQueSync is there on every chip
    bool bfloat16;
    bool castFloatToHalfRounding;  // float -> half with RINT, FLOOR, CEIL, ROUND, TRUNC
    bool reduceOnlyValue;   // ReduceOrder::ORDER_ONLY_VALUE
    bool reduceOnlyIndex;   // ReduceOrder::ORDER_ONLY_INDEX
    bool reduceIndexValue;  // ReduceOrder::ORDER_INDEX_VALUE
    bool kernelTypes;       // KERNEL_TASK_TYPE and KERNEL_TASK_TYPE_DEFAULT
    bool matmulFloatOperands;
    bool mulAddDstMixed;    // MulAddDst of half operands into float
    bool matmulNeedsUb;     // Matmul needs SetLocalWorkspace to reach global memory
    std::size_t skippedWorkspace;  // bytes at the start of the workspace that the kernel does not get
    std::size_t libraryWorkspace;  // what the host's GetLibApiWorkSpaceSize returns
};

}  // namespace standin

#include "chip_table.h"  // standin::kChip

static_assert(standin::kChip.arch == __NPU_ARCH__, "chip_table.h describes another chip");

#endif
