// The kernel function of QuantLinear, which computes kernels.reference.quant_linear.
//
// The tiling function selects a kernel with the tiling key: the vector cores multiply a few rows, the cube more. So one
// node of a graph serves every bucket.
#include "quant_rows.h"
#include "quant_tiles.h"

extern "C" __global__ __aicore__ void quant_linear(GM_ADDR x, GM_ADDR weight, GM_ADDR y, GM_ADDR workspace,
                                                   GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(QuantLinearTiling);
    GET_TILING_DATA_WITH_STRUCT(QuantLinearTiling, data, tiling);
#if EDGELLAMA_SPLIT_CORES
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
#elif EDGELLAMA_ARCH == 2002
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AICORE);
#endif
    // TILING_KEY_IS takes literals, because CANN's compiler searches the text of this function for the keys.
    static_assert(QUANT_KEY_ROWS == 1 && QUANT_KEY_TILES == 2 && QUANT_KEY_WIDE_TILES == 3,
                  "the keys that the tiling function sets");
    AscendC::TPipe pipe;
    if (TILING_KEY_IS(1)) {
#if EDGELLAMA_SPLIT_CORES
        KERNEL_TASK_TYPE(1, KERNEL_TYPE_MIX_AIV_1_0);
#endif
        edgellama::QuantRows kernel;
        kernel.Init(x, weight, y, data, &pipe);
        kernel.Process();
    } else if (TILING_KEY_IS(2)) {
        edgellama::QuantTiles<half> kernel;
        REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), kernel.product, &data.product);
        kernel.Init(x, weight, y, workspace, data, &pipe);
        kernel.Process();
    } else if (TILING_KEY_IS(3)) {
        edgellama::QuantTiles<float> kernel;
        REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), kernel.product, &data.product);
        kernel.Init(x, weight, y, workspace, data, &pipe);
        kernel.Process();
    }
}
