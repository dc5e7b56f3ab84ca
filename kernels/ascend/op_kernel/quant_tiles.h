// QuantLinear for many rows (prefill): unpacks the weights of some columns to float16, then the cube multiplies all rows
// with them.
//
// The unpacked weights pass through the worker's workspace, the only place from which Matmul reads on all three chips.
// A panel of unpacked weights [K, 16] is a column of fractals (NZ), so it is written and read in long bursts.
#ifndef EDGELLAMA_QUANT_TILES_H
#define EDGELLAMA_QUANT_TILES_H

#include "cube_matmul.h"
#include "quant_weights.h"

namespace edgellama {

template <typename Result>
class QuantTiles {
public:
    using Rows = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half>;
    using Weight = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::NZ, half>;
    using Product = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, Result>;
    CubeMatmul<Rows, Weight, Product> product;  // the kernel function registers it before Init

    __aicore__ inline void Init(GM_ADDR x, GM_ADDR weight, GM_ADDR y, GM_ADDR workspace,
                                const QuantLinearTiling& tiling, AscendC::TPipe* pipe) {
        rows_ = tiling.rows;
        inputs_ = tiling.inputs;
        columns_ = tiling.columns;
        group_ = tiling.group;
        four_ = tiling.bits == 4;
        panels_ = tiling.panels;
        blockPanels_ = tiling.blockPanels;
        tilePanels_ = tiling.tilePanels;
        tileInputs_ = tiling.tileInputs;
        x_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(x));
        y_.SetGlobalBuffer(reinterpret_cast<__gm__ Result*>(y));
        unpacked_.SetGlobalBuffer(
            reinterpret_cast<__gm__ half*>(workspace + AscendC::GetBlockIdx() * tiling.workspaceBytes),
            tiling.workspaceBytes / sizeof(half));
        weights_.Init(weight, tiling, pipe);
        pipe->InitBuffer(halfQueue_, 2, tiling.halfBytes);
        if (four_) {
            const int32_t even = tilePanels_ * CeilTo(tileInputs_ / group_, 2) * FRACTAL;
            pipe->InitBuffer(zeroBuffer_, even * sizeof(half));
            zeros_ = zeroBuffer_.Get<half>(even);
        }
#if EDGELLAMA_MATMUL_BORROWS_UB
        pipe->InitBuffer(matmulBuffer_, tiling.matmulBytes);
#endif
    }

    __aicore__ inline void Process() {
        const int32_t all = columns_ / FRACTAL, begin = static_cast<int32_t>(AscendC::GetBlockIdx()) * panels_;
        const int32_t end = Least(begin + panels_, all);
        for (int32_t first = begin; first < end; first += blockPanels_) {
            const int32_t panels = Least(blockPanels_, end - first);
            Unpack(first, panels);
            AscendC::PipeBarrier<PIPE_ALL>();  // the weights must be in global memory before the cube reads them
            product.SetSingleShape(rows_, panels * FRACTAL, inputs_);
            product.SetTensorA(x_);
            product.SetTensorB(unpacked_);
#if EDGELLAMA_MATMUL_BORROWS_UB
            product.SetLocalWorkspace(matmulBuffer_.Get<uint8_t>());
#endif
            product.IterateAll(y_[first * FRACTAL]);
            product.End();
#if !EDGELLAMA_SPLIT_CORES
            AscendC::PipeBarrier<PIPE_ALL>();  // the next block overwrites the weights
#endif
        }
    }

private:
    // Writes the weights of `panels` panels to the workspace, [panels, K, 16].
    __aicore__ inline void Unpack(int32_t first, int32_t panels) {
        const int32_t along = CeilDiv(inputs_, tileInputs_), tiles = CeilDiv(panels, tilePanels_) * along;
        Load(first, panels, 0, along);
        for (int32_t tile = 0; tile < tiles; ++tile) {
            const int32_t panel = tile / along * tilePanels_, input = tile % along * tileInputs_;
            weights_.Take();
            if (tile + 1 < tiles) Load(first, panels, tile + 1, along);
            Tile(panel, Least(tilePanels_, panels - panel), input, Least(tileInputs_, inputs_ - input));
        }
    }

    __aicore__ inline void Load(int32_t first, int32_t panels, int32_t tile, int32_t along) {
        const int32_t panel = tile / along * tilePanels_, input = tile % along * tileInputs_;
        weights_.Load(first + panel, Least(tilePanels_, panels - panel), input, Least(tileInputs_, inputs_ - input));
    }

    __aicore__ inline void Tile(int32_t panel, int32_t panels, int32_t input, int32_t depth) {
        const int32_t segments = panels * (depth / SEGMENT), each = depth / group_;
        AscendC::LocalTensor<half> tile = halfQueue_.template AllocTensor<half>();
        if (four_) {
            Halves(tile, segments);
            AscendC::Cast(zeros_, weights_.Zeros(), AscendC::RoundMode::CAST_NONE,
                          panels * CeilTo(each, 2) * FRACTAL);
            VectorFence();
            half quarter = static_cast<half>(0.25f);
            AscendC::Muls(zeros_, zeros_, quarter, panels * CeilTo(each, 2) * FRACTAL);
            VectorFence();
        } else {
            weights_.Integers(tile, segments);
        }
        // Subtracts zero points and multiplies scales, 8 inputs of each group at a time. Differences of integers and
        // quarters are exact, so only the product with the scale is rounded.
        const BinaryRepeatParams groups(1, 1, 0, group_, group_, 1);
        for (int32_t p = 0; p < panels && four_; ++p) {
            AscendC::LocalTensor<half> zero = zeros_[p * CeilTo(each, 2) * FRACTAL];
            for (int32_t k = 0; k < group_; k += BLOCK) {
                AscendC::LocalTensor<half> part = tile[(p * depth + k) * FRACTAL];
                AscendC::Sub(part, part, zero, static_cast<uint64_t>(HALVES), each, groups);
            }
        }
        if (four_) VectorFence();
        for (int32_t k = 0; k < group_; k += BLOCK) {
            AscendC::LocalTensor<half> part = tile[k * FRACTAL];
            AscendC::Mul(part, part, weights_.Scales(), static_cast<uint64_t>(HALVES), panels * each, groups);
        }
        VectorFence();
        weights_.Release();
        halfQueue_.EnQue(tile);
        tile = halfQueue_.template DeQue<half>();
        AscendC::DataCopy(unpacked_[(static_cast<int64_t>(panel) * inputs_ + input) * FRACTAL], tile,
                          AscendC::DataCopyParams(panels, depth, 0, inputs_ - depth));
        halfQueue_.FreeTensor(tile);
    }

    // tile = the integers of 4 bits, [segments, 32, 16].
    __aicore__ inline void Halves(AscendC::LocalTensor<half> tile, int32_t segments) {
        const AscendC::UnaryRepeatParams cast(1, 1, CELLS / FRACTAL, HALF_CELLS / 32),
            inPlace(1, 1, CELLS / FRACTAL, CELLS / FRACTAL);
        half sixteenth = static_cast<half>(0.0625f);  // the upper halves of the bytes are 16 times the integers
        for (int32_t part = 0; part < 2; ++part) {
            AscendC::LocalTensor<uint8_t> nibbles = weights_.Nibbles(part == 1, segments);
            for (int32_t c = 0; c < HALF_CELLS; c += HALVES) {
                AscendC::Cast(tile[part * HALF_CELLS + c], nibbles[c], AscendC::RoundMode::CAST_NONE,
                              static_cast<uint64_t>(HALVES), segments, cast);
            }
            VectorFence();
        }
        for (int32_t c = HALF_CELLS; c < CELLS; c += HALVES) {
            AscendC::Muls(tile[c], tile[c], sixteenth, static_cast<uint64_t>(HALVES), segments, inPlace);
        }
        VectorFence();
    }

    int32_t rows_ = 0, inputs_ = 0, columns_ = 0, group_ = 0, panels_ = 0, blockPanels_ = 0, tilePanels_ = 0,
            tileInputs_ = 0;
    bool four_ = false;
    QuantWeights weights_;
    AscendC::GlobalTensor<half> x_, unpacked_;
    AscendC::GlobalTensor<Result> y_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> halfQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> zeroBuffer_, matmulBuffer_;
    AscendC::LocalTensor<half> zeros_;
};

}  // namespace edgellama

#endif
