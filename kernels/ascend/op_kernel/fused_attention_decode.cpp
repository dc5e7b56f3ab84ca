// FusedAttentionDecode: kernels.reference.fused_attention for one token a row, on the vector cores.
#include "decode_attention.h"

extern "C" __global__ __aicore__ void fused_attention_decode(GM_ADDR qkv, GM_ADDR cos, GM_ADDR sin, GM_ADDR start,
                                                             GM_ADDR length, GM_ADDR k_cache, GM_ADDR v_cache,
                                                             GM_ADDR out, GM_ADDR k_cache_ref, GM_ADDR v_cache_ref,
                                                             GM_ADDR workspace, GM_ADDR tiling) {
    (void)k_cache_ref;  // the same memory as k_cache and v_cache: the operator declares them under one name
    (void)v_cache_ref;
    REGISTER_TILING_DEFAULT(DecodeTiling);
    GET_TILING_DATA_WITH_STRUCT(DecodeTiling, data, tiling);
#if EDGELLAMA_SPLIT_CORES
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // vector cores, able to meet in SyncAll
#elif EDGELLAMA_ARCH == 2002
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AICORE);
#endif
    AscendC::TPipe pipe;
    edgellama::DecodeAttention kernel;
    kernel.Init(qkv, cos, sin, start, length, k_cache, v_cache, out, workspace, data, &pipe);
    kernel.Process();
}
