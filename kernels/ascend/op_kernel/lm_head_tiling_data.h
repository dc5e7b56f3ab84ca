// The data that LmHead's tiling function passes to its kernel: a plain structure with the same layout on host and
// device. Its size is a multiple of 8 bytes.
#ifndef EDGELLAMA_LM_HEAD_TILING_DATA_H
#define EDGELLAMA_LM_HEAD_TILING_DATA_H

#include <cstdint>

#include "kernel_tiling/kernel_tiling.h"

struct LmHeadTiling {
    int32_t rows;         // B
    int32_t hidden;       // E
    int32_t vocabulary;   // V
    int32_t columns;      // vocabulary entries of one worker, a multiple of 16
    int32_t matmulBytes;  // bytes of unified buffer for Matmul (310P only, else 0)
    int32_t reserved;
    AscendC::tiling::TCubeTiling product;  // [B, E] x [columns, E]^T; the result has a row stride of V
    int64_t end;          // keeps the size a multiple of 8 for every size of TCubeTiling
};

#endif
