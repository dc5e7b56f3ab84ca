// Reads tiles of packed weights (kernels/ascend_format.py) and unpacks their integers to float16.
//
// A tile is a run of whole groups of a few panels of 16 columns. Its integers, scales and zero points are contiguous in
// each panel, so each is one copy of long bursts, double buffered.
#ifndef EDGELLAMA_QUANT_WEIGHTS_H
#define EDGELLAMA_QUANT_WEIGHTS_H

#include "chip.h"
#include "quant_linear_tiling_data.h"
#include "vector_ops.h"

namespace edgellama {

constexpr int32_t SEGMENT = 32;                 // inputs whose integers are stored together
constexpr int32_t CELLS = SEGMENT * FRACTAL;    // weights of a segment
constexpr int32_t HALF_CELLS = CELLS / 2;
constexpr int32_t HALVES = 128;                 // float16 numbers of one vector repeat

class QuantWeights {
public:
    __aicore__ inline void Init(GM_ADDR weight, const QuantLinearTiling& t, AscendC::TPipe* pipe) {
        inputs_ = t.inputs;
        group_ = t.group;
        four_ = t.bits == 4;
        panelBytes_ = t.panelBytes;
        groups_ = t.inputs / t.group;
        segmentBytes_ = CELLS * t.bits / 8;
        weight_.SetGlobalBuffer(reinterpret_cast<__gm__ uint8_t*>(weight));
        pipe->InitBuffer(integerQueue_, 2, t.integerBytes);
        pipe->InitBuffer(scaleQueue_, 2, t.scaleBytes);
        if (!four_) return;
        pipe->InitBuffer(zeroQueue_, 2, t.zeroBytes);
        pipe->InitBuffer(nibbleBuffer_, t.integerBytes);
        pipe->InitBuffer(maskBuffer_, 2 * 32);
        nibbles_ = nibbleBuffer_.Get<uint16_t>();
        lower_ = maskBuffer_.Get<uint16_t>(FRACTAL);
        upper_ = maskBuffer_.GetWithOffset<uint16_t>(FRACTAL, 32);
        uint16_t low = 0x0f0f, high = 0xf0f0;
        AscendC::Duplicate(lower_, low, FRACTAL);
        AscendC::Duplicate(upper_, high, FRACTAL);
        VectorFence();
    }

    // Starts the copies of a tile: `panels` panels from `panel` on, `depth` inputs from `input` on.
    __aicore__ inline void Load(int32_t panel, int32_t panels, int32_t input, int32_t depth) {
        const int64_t at = static_cast<int64_t>(panel) * panelBytes_;
        const int32_t scales = groups_ * FRACTAL * static_cast<int32_t>(sizeof(half));
        const int32_t zeros = four_ ? CeilTo(groups_, 2) * FRACTAL : 0;
        const int32_t segment = input / SEGMENT, first = input / group_, count = depth / group_;
        AscendC::LocalTensor<uint8_t> integers = integerQueue_.AllocTensor<uint8_t>();
        Copy(integers, at + scales + zeros + static_cast<int64_t>(segment) * segmentBytes_, panels,
             depth / SEGMENT * segmentBytes_);
        integerQueue_.EnQue(integers);
        AscendC::LocalTensor<uint8_t> scale = scaleQueue_.AllocTensor<uint8_t>();
        Copy(scale, at + first * 32, panels, count * 32);
        scaleQueue_.EnQue(scale);
        if (!four_) return;
        AscendC::LocalTensor<uint8_t> zero = zeroQueue_.AllocTensor<uint8_t>();
        Copy(zero, at + scales + first * FRACTAL, panels, CeilTo(count, 2) * FRACTAL);
        zeroQueue_.EnQue(zero);
    }

    // Waits for the next tile.
    __aicore__ inline void Take() {
        integers_ = integerQueue_.DeQue<uint8_t>();
        scales_ = scaleQueue_.DeQue<uint8_t>();
        if (four_) zeros_ = zeroQueue_.DeQue<uint8_t>();
    }

    __aicore__ inline void Release() {
        integerQueue_.FreeTensor(integers_);
        scaleQueue_.FreeTensor(scales_);
        if (four_) zeroQueue_.FreeTensor(zeros_);
    }

    // dst = the integers of `segments` segments, 8 bits: [segments, 32, 16].
    __aicore__ inline void Integers(AscendC::LocalTensor<half> dst, int32_t segments) {
        AscendC::Cast(dst, integers_.template ReinterpretCast<int8_t>(), AscendC::RoundMode::CAST_NONE,
                      segments * CELLS);
        VectorFence();
    }

    // The lower halves of the bytes of `segments` segments, 4 bits, or 16 times the upper halves: [segments, 16, 16] of
    // uint8, for Cast. A mask is enough for both; a shift would be one more instruction.
    __aicore__ inline AscendC::LocalTensor<uint8_t> Nibbles(bool upper, int32_t segments) {
        AscendC::And(nibbles_, integers_.template ReinterpretCast<uint16_t>(), upper ? upper_ : lower_,
                     static_cast<uint64_t>(HALVES), segments, BinaryRepeatParams(1, 1, 0, 8, 8, 0));
        VectorFence();
        return nibbles_.template ReinterpretCast<uint8_t>();
    }

    // The scales [panels, groups, 16], and the zero points in quarters as int8 [panels, groups rounded up to 2, 16].
    __aicore__ inline AscendC::LocalTensor<half> Scales() { return scales_.template ReinterpretCast<half>(); }
    __aicore__ inline AscendC::LocalTensor<int8_t> Zeros() { return zeros_.template ReinterpretCast<int8_t>(); }

private:
    // Copies `bytes` bytes at `at` of each of `panels` panels.
    __aicore__ inline void Copy(AscendC::LocalTensor<uint8_t> dst, int64_t at, int32_t panels, int32_t bytes) {
        AscendC::DataCopy(dst, weight_[at],
                          AscendC::DataCopyParams(panels, bytes / 32, (panelBytes_ - bytes) / 32, 0));
    }

    int32_t inputs_ = 0, group_ = 0, groups_ = 0, panelBytes_ = 0, segmentBytes_ = 0;
    bool four_ = false;
    AscendC::GlobalTensor<uint8_t> weight_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> integerQueue_, scaleQueue_, zeroQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> nibbleBuffer_, maskBuffer_;
    AscendC::LocalTensor<uint8_t> integers_, scales_, zeros_;
    AscendC::LocalTensor<uint16_t> nibbles_, lower_, upper_;
};

}  // namespace edgellama

#endif
