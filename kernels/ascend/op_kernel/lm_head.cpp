// The kernel function of LmHead, which computes kernels.reference.lm_head.
#include "lm_head.h"

extern "C" __global__ __aicore__ void lm_head(GM_ADDR x, GM_ADDR weight, GM_ADDR logits, GM_ADDR workspace,
                                              GM_ADDR tiling) {
    (void)workspace;  // only Matmul uses it, through GetSysWorkSpacePtr
    REGISTER_TILING_DEFAULT(LmHeadTiling);
    GET_TILING_DATA_WITH_STRUCT(LmHeadTiling, data, tiling);
#if EDGELLAMA_SPLIT_CORES
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
#elif EDGELLAMA_ARCH == 2002
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AICORE);
#endif
    AscendC::TPipe pipe;
    edgellama::LmHead kernel;
    REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), kernel.product, &data.product);
    kernel.Init(x, weight, logits, data, &pipe);
    kernel.Process();
}
