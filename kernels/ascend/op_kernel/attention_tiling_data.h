// The data that the tiling functions of FusedAttention, SplitAttention and JoinAttention pass to their kernels: plain
// structures with the same layout on host and device. Their sizes are multiples of 8 bytes.
//
// Letters as in kernels/reference.py: B rows, S tokens, H query heads, G key/value heads, D head size, C cache
// capacity, P rows of the rotary tables.
#ifndef EDGELLAMA_ATTENTION_TILING_DATA_H
#define EDGELLAMA_ATTENTION_TILING_DATA_H

#include <cstdint>

#include "kernel_tiling/kernel_tiling.h"

struct AttentionSizes {
    int32_t rows;       // B
    int32_t tokens;     // S
    int32_t heads;      // H
    int32_t groups;     // G
    int32_t headDim;    // D
    int32_t capacity;   // C
    int32_t positions;  // P
    int32_t window;     // positions that a token sees, its own included; 0: all earlier positions
    float scale;
    int32_t reserved;
};

struct DecodeTiling {
    AttentionSizes sizes;
    int32_t columns;      // of the scores of a step: the cache positions, and 16 for the tail; a multiple of 512
    int32_t parts;        // work items per row and key/value head; with more than 1, JoinAttention follows
    int32_t workers;      // number of cores that run
    int32_t matmulBytes;  // bytes of unified buffer for Matmul (310P only, else 0)
    int32_t weightRows;   // query heads whose weights become float16 at a time
    int32_t reserved;
    int64_t workspaceBytes;  // bytes of workspace per worker
    AscendC::tiling::TCubeTiling qk;  // [H / G, D] x [columns, D]^T
    AscendC::tiling::TCubeTiling pv;  // [H / G, columns] x [columns, D]
    int64_t end;             // keeps the size a multiple of 8 for every size of TCubeTiling
};

struct PrefillTiling {
    AttentionSizes sizes;
    int32_t tileTokens;      // tokens per work item; its matrix has tileTokens * H / G rows
    int32_t queries;         // rows of that matrix, rounded up to a multiple of 16
    int32_t keys;            // columns: cache positions per step, a multiple of 16
    int32_t prepareTokens;   // tokens per call of the rotary embedding
    int32_t tailRows;        // rows of the workspace's copy of the newest keys and values
    int32_t workers;         // number of cores that run
    int32_t matmulBytes;     // bytes of unified buffer for Matmul (310P only, else 0)
    int32_t reserved;
    int64_t workspaceBytes;  // bytes of workspace per worker
    AscendC::tiling::TCubeTiling qk;  // [queries, D] x [keys, D]^T
    AscendC::tiling::TCubeTiling pv;  // [queries, keys] x [keys, D]
    int64_t end;             // keeps the size a multiple of 8 for every size of TCubeTiling
};

struct AttentionTiling {
    DecodeTiling decode;
    PrefillTiling prefill;
};

struct JoinTiling {
    int32_t heads;     // rows * key/value heads
    int32_t ratio;     // H / G
    int32_t headDim;   // D
    int32_t parts;     // records per head
    int32_t workers;   // number of cores that run
    int32_t chunk;     // elements per copy, where there is nothing to join
    int64_t elements;  // of the attention's result
};

// Tiling keys of FusedAttention, SplitAttention and JoinAttention.
#define ATTENTION_KEY_DECODE 1
#define ATTENTION_KEY_PREFILL 2

#endif
