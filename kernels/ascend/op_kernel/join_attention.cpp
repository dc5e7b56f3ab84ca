// The kernel function of JoinAttention, which computes kernels.reference.join_attention.
#include "join_attention.h"

extern "C" __global__ __aicore__ void join_attention(GM_ADDR out, GM_ADDR partial, GM_ADDR joined, GM_ADDR workspace,
                                                     GM_ADDR tiling) {
    (void)workspace;
    REGISTER_TILING_DEFAULT(JoinTiling);
    GET_TILING_DATA_WITH_STRUCT(JoinTiling, data, tiling);
#if EDGELLAMA_SPLIT_CORES
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
#elif EDGELLAMA_ARCH == 2002
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AICORE);
#endif
    // TILING_KEY_IS takes literals, because CANN's compiler searches the text of this function for the keys.
    static_assert(ATTENTION_KEY_DECODE == 1 && ATTENTION_KEY_PREFILL == 2, "the keys that the tiling function sets");
    AscendC::TPipe pipe;
    if (TILING_KEY_IS(1)) {
        edgellama::JoinRecords kernel;
        kernel.Init(partial, joined, data, &pipe);
        kernel.Process();
    } else if (TILING_KEY_IS(2)) {
        edgellama::CopyResult kernel;
        kernel.Init(out, joined, data, &pipe);
        kernel.Process();
    }
}
