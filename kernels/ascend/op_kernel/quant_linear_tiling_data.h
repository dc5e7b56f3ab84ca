// The data that QuantLinear's tiling function passes to its kernels: a plain structure with the same layout on host and
// device. Its size is a multiple of 8 bytes.
#ifndef EDGELLAMA_QUANT_LINEAR_TILING_DATA_H
#define EDGELLAMA_QUANT_LINEAR_TILING_DATA_H

#include <cstdint>

#include "kernel_tiling/kernel_tiling.h"

// The tiling keys: a few rows on the vector cores; more rows on the cube, with a float16 or a float32 result.
#define QUANT_KEY_ROWS 1
#define QUANT_KEY_TILES 2
#define QUANT_KEY_WIDE_TILES 3

struct QuantLinearTiling {
    int32_t rows;         // T
    int32_t inputs;       // K
    int32_t columns;      // N
    int32_t bits;         // 8 or 4
    int32_t group;        // inputs that share a scale
    int32_t wide;         // 1: the result is float32
    int32_t panelBytes;   // of a panel of 16 columns (kernels/ascend_format.py)
    int32_t panels;       // panels of a worker
    int32_t blockPanels;  // panels whose results a worker computes at a time
    int32_t tilePanels;   // panels of a tile
    int32_t tileInputs;   // inputs of a tile
    int32_t matmulBytes;  // bytes of unified buffer for Matmul (310P with tiles only, else 0)
    // Bytes of unified buffer: of one tile's integers, scales and zero points as they are stored; of its weights in
    // float16; of the few rows: as the vector unit multiplies them, and of one row of x.
    int32_t integerBytes, scaleBytes, zeroBytes, halfBytes, operandBytes, spreadBytes;
    AscendC::tiling::TCubeTiling product;  // [T, K] x [K, 16 blockPanels]; the result has a row stride of N
    int64_t workspaceBytes;                // of a worker, for tiles
    int64_t end;          // keeps the size a multiple of 8 for every size of TCubeTiling
};

#endif
