// The tiling structure of the high-level Matmul, with the fields that CANN's documentation names.
#ifndef EDGELLAMA_STANDIN_KERNEL_TILING_H
#define EDGELLAMA_STANDIN_KERNEL_TILING_H

#include <cstdint>

namespace AscendC {
namespace tiling {

struct TCubeTiling {
    std::int32_t usedCoreNum;
    std::int32_t M, N, Ka, Kb;
    std::int32_t singleCoreM, singleCoreN, singleCoreK;
    std::int32_t baseM, baseN, baseK;
    std::int32_t depthA1, depthB1;
    std::int32_t stepM, stepN, stepKa, stepKb;
    std::int32_t isBias, transLength, iterateOrder;
    std::int32_t dbL0A, dbL0B, dbL0C;
    std::int32_t shareMode, shareL1Size, shareL0CSize, shareUbSize;
    std::int32_t batchM, batchN, singleBatchM, singleBatchN, mxTypePara;
};

}  // namespace tiling
}  // namespace AscendC

using AscendC::tiling::TCubeTiling;

#endif
