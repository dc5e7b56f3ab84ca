// The kernel function of SplitAttention, which computes kernels.reference.split_attention.
//
// It is FusedAttention with several work items per head in decode, whose records JoinAttention joins.
#include "decode_attention.h"
#include "prefill_attention.h"

extern "C" __global__ __aicore__ void split_attention(GM_ADDR qkv, GM_ADDR cos, GM_ADDR sin, GM_ADDR start,
                                                      GM_ADDR length, GM_ADDR k_cache, GM_ADDR v_cache, GM_ADDR out,
                                                      GM_ADDR partial, GM_ADDR k_cache_ref, GM_ADDR v_cache_ref,
                                                      GM_ADDR workspace, GM_ADDR tiling) {
    (void)k_cache_ref;  // the same memory as k_cache and v_cache: input and output have the same name
    (void)v_cache_ref;
    REGISTER_TILING_DEFAULT(AttentionTiling);
    GET_TILING_DATA_WITH_STRUCT(AttentionTiling, data, tiling);
#if EDGELLAMA_SPLIT_CORES
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
#elif EDGELLAMA_ARCH == 2002
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AICORE);
#endif
    // TILING_KEY_IS takes literals, because CANN's compiler searches the text of this function for the keys.
    static_assert(ATTENTION_KEY_DECODE == 1 && ATTENTION_KEY_PREFILL == 2, "the keys that the tiling function sets");
    AscendC::TPipe pipe;
    if (TILING_KEY_IS(1)) {
        edgellama::DecodeAttention kernel;
        REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), kernel.qk, &data.decode.qk, kernel.pv, &data.decode.pv);
        kernel.Init(qkv, cos, sin, start, length, k_cache, v_cache, out, partial, workspace, data.decode, &pipe);
        kernel.Process();
    } else if (TILING_KEY_IS(2)) {
        edgellama::PrefillAttention kernel;
        REGIST_MATMUL_OBJ(&pipe, GetSysWorkSpacePtr(), kernel.qk, &data.prefill.qk, kernel.pv, &data.prefill.pv);
        kernel.Init(qkv, cos, sin, start, length, k_cache, v_cache, out, workspace, data.prefill, &pipe);
        kernel.Process();
    }
}
