// What LmHead's tiling function hands to its kernel: a plain structure, the same on host and device, a multiple of
// 8 bytes.
#ifndef EDGELLAMA_LM_HEAD_TILING_DATA_H
#define EDGELLAMA_LM_HEAD_TILING_DATA_H

#include <cstdint>

#include "kernel_tiling/kernel_tiling.h"

struct LmHeadTiling {
    int32_t rows;         // B
    int32_t hidden;       // E
    int32_t vocabulary;   // V
    int32_t columns;      // of one worker, a multiple of 16
    int32_t matmulBytes;  // unified buffer that Matmul needs for itself (310P), else 0
    int32_t reserved;
    AscendC::tiling::TCubeTiling product;  // [B, E] x [columns, E]^T, into rows of V
    int64_t end;          // keeps the size a multiple of 8 whatever the size of TCubeTiling
};

#endif
