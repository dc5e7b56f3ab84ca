// What the tiling functions hand to the kernels. Plain structures, the same on host and device, each a multiple of
// 8 bytes. Letters as in kernels/reference.py: B rows, S tokens, H query heads, G key/value heads, D head size,
// C cache capacity, P rows of the rotary tables.
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
    int32_t window;     // 0: all earlier positions are visible
    float scale;
    int32_t reserved;
};

struct DecodeTiling {
    AttentionSizes sizes;
    int32_t keys;     // cache positions of one tile, at most 64
    int32_t splits;   // cores that share one row and key/value head; more than 1 needs SyncAll
    int32_t workers;  // cores that run
    int32_t reserved;
};

struct PrefillTiling {
    AttentionSizes sizes;
    int32_t tileTokens;      // tokens of one work item; with the H / G heads of a group they are one matrix's rows
    int32_t queries;         // rows of that matrix, a multiple of 16
    int32_t keys;            // columns: cache positions of one step, a multiple of 16
    int32_t prepareTokens;   // tokens whose rotary embedding is computed at a time
    int32_t tailRows;        // rows of the workspace's copy of the newest keys and values
    int32_t workers;         // cores that run
    int32_t matmulBytes;     // unified buffer that Matmul needs for itself (310P), else 0
    int32_t reserved;
    int64_t workspaceBytes;  // of one worker
    AscendC::tiling::TCubeTiling qk;  // [queries, D] x [keys, D]^T
    AscendC::tiling::TCubeTiling pv;  // [queries, keys] x [keys, D]
    int64_t end;             // keeps the size a multiple of 8 whatever the size of TCubeTiling
};

struct AttentionTiling {
    DecodeTiling decode;
    PrefillTiling prefill;
};

// Tiling keys of FusedAttention.
#define ATTENTION_KEY_DECODE 1
#define ATTENTION_KEY_PREFILL 2

#endif
