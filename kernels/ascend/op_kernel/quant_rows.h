// QuantLinear for a few rows (decode): the vector unit multiplies; the weights are read once for all rows.
//
// An element of float32 sums belongs to one column and one input of four, so the products of a segment of 32 inputs
// need eight instructions, and each instruction covers all segments of a panel's tile. The sums are in planes of
// 32-byte blocks, so that whole planes fold into one another, and the scale of a group is a factor of its folded sum.
// A zero point is subtracted from the sum of a group as zero * scale * (sum of the group's x).
//
// The 310B cannot multiply float16 into float32, nor spread values with Brcb. There the weights and x are converted to
// float32 first.
#ifndef EDGELLAMA_QUANT_ROWS_H
#define EDGELLAMA_QUANT_ROWS_H

#include "quant_weights.h"

namespace edgellama {

class QuantRows {
public:
#if EDGELLAMA_MULTIPLIES_HALF_INTO_FLOAT
    using Operand = half;
#else
    using Operand = float;
#endif
    static constexpr int32_t OPERAND_BLOCK = 32 / static_cast<int32_t>(sizeof(Operand));  // operands of a block
    static constexpr int32_t SPREAD = 64;  // values that one Gather spreads over blocks

    __aicore__ inline void Init(GM_ADDR x, GM_ADDR weight, GM_ADDR y, const QuantLinearTiling& tiling,
                                AscendC::TPipe* pipe) {
        t_ = tiling;
        x_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(x));
        if (t_.wide != 0) {
            wideY_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(y));
        } else {
            y_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(y));
        }
        weights_.Init(weight, tiling, pipe);
        four_ = t_.bits == 4;
        const int32_t blocks = t_.tilePanels * t_.tileInputs / SEGMENT;  // of a plane
        const int32_t groups = t_.tilePanels * t_.tileInputs / t_.group, width = t_.blockPanels * FRACTAL;
        pipe->InitBuffer(xQueue_, 1, t_.rows * t_.tileInputs * sizeof(half));
        pipe->InitBuffer(outQueue_, 1, width * sizeof(float));
        pipe->InitBuffer(halfBuffer_, t_.halfBytes);
        pipe->InitBuffer(spreadBuffer_, t_.rows * t_.spreadBytes);
        pipe->InitBuffer(planeBuffer_, blocks * 8 * 32);
        pipe->InitBuffer(pairBuffer_, blocks * 32);
        pipe->InitBuffer(scaleBuffer_, groups * 2 * 32);
        pipe->InitBuffer(sumBuffer_, t_.rows * width * sizeof(float));
        half_ = halfBuffer_.Get<half>();
        spread_ = spreadBuffer_.Get<Operand>();
        planes_ = planeBuffer_.Get<float>();
        pairs_ = pairBuffer_.Get<float>();
        scales_ = scaleBuffer_.Get<float>();
        sums_ = sumBuffer_.Get<float>();
#if !EDGELLAMA_MULTIPLIES_HALF_INTO_FLOAT
        pipe->InitBuffer(operandBuffer_, t_.operandBytes);
        operand_ = operandBuffer_.Get<float>();
        pipe->InitBuffer(spreadTable_, SPREAD * FRACTAL * sizeof(int32_t));
        AscendC::LocalTensor<int32_t> table = spreadTable_.Get<int32_t>();
        Ramp(table, static_cast<int32_t>(0), FRACTAL, static_cast<int32_t>(sizeof(float)), SPREAD * FRACTAL);
        valueOfBlock_ = table.template ReinterpretCast<uint32_t>();
#else
        operand_ = half_;
#endif
        pipe->InitBuffer(wideBuffer_, t_.tileInputs * sizeof(float));
        wideX_ = wideBuffer_.Get<float>();
        if (!four_) return;
        const int32_t segments = t_.tileInputs / SEGMENT, evenGroups = CeilTo(t_.tileInputs / t_.group, 2);
        pipe->InitBuffer(zeroBuffer_, 2 * groups * 2 * 32 + t_.tilePanels * evenGroups * FRACTAL * sizeof(half));
        zeros_ = zeroBuffer_.Get<float>(groups * FRACTAL);
        product_ = zeroBuffer_.GetWithOffset<float>(groups * FRACTAL, groups * 2 * 32);
        halfZeros_ = zeroBuffer_.GetWithOffset<half>(t_.tilePanels * evenGroups * FRACTAL, 2 * groups * 2 * 32);
        pipe->InitBuffer(groupSumBuffer_, t_.rows * groups * 32);
        groupSums_ = groupSumBuffer_.Get<float>();
        pipe->InitBuffer(segmentSumBuffer_, CeilTo(segments * 4, 32) + 3 * segments * 32);
        segmentSums_ = segmentSumBuffer_.Get<float>(segments);
        segmentBlocks_ = segmentSumBuffer_.GetWithOffset<float>(2 * segments * BLOCK, CeilTo(segments * 4, 32));
        AscendC::LocalTensor<int32_t> sums = segmentSumBuffer_.GetWithOffset<int32_t>(
            segments * BLOCK, CeilTo(segments * 4, 32) + 2 * segments * 32);
        Ramp(sums, static_cast<int32_t>(0), BLOCK, static_cast<int32_t>(sizeof(float)), segments * BLOCK);
        sumOfBlock_ = sums.template ReinterpretCast<uint32_t>();
    }

    __aicore__ inline void Process() {
        const int32_t all = t_.columns / FRACTAL, begin = static_cast<int32_t>(AscendC::GetBlockIdx()) * t_.panels;
        const int32_t end = Least(begin + t_.panels, all);
        for (int32_t first = begin; first < end; first += t_.blockPanels) {
            Block(first, Least(t_.blockPanels, end - first));
        }
    }

private:
    // Computes the columns of `panels` panels. Tiles follow one another along the columns, then along the inputs, so x
    // is spread once for all tiles of its inputs.
    __aicore__ inline void Block(int32_t first, int32_t panels) {
        float zero = 0.0f;
        AscendC::Duplicate(sums_, zero, t_.rows * t_.blockPanels * FRACTAL);
        VectorFence();
        const int32_t across = CeilDiv(panels, t_.tilePanels), tiles = across * CeilDiv(t_.inputs, t_.tileInputs);
        Load(first, panels, 0, across);
        for (int32_t tile = 0; tile < tiles; ++tile) {
            const int32_t input = tile / across * t_.tileInputs, panel = tile % across * t_.tilePanels;
            const int32_t depth = Least(t_.tileInputs, t_.inputs - input);
            if (panel == 0) Spread(input, depth);
            weights_.Take();
            if (tile + 1 < tiles) Load(first, panels, tile + 1, across);
            Tile(panel, Least(t_.tilePanels, panels - panel), depth);
        }
        Store(first, panels);
    }

    __aicore__ inline void Load(int32_t first, int32_t panels, int32_t tile, int32_t across) {
        const int32_t input = tile / across * t_.tileInputs, panel = tile % across * t_.tilePanels;
        weights_.Load(first + panel, Least(t_.tilePanels, panels - panel), input,
                      Least(t_.tileInputs, t_.inputs - input));
    }

    // Spreads `depth` values of each row of x: each fills a block of 16, as the columns of a panel need it. With zero
    // points it also sums each group, once for every panel of a tile.
    __aicore__ inline void Spread(int32_t input, int32_t depth) {
        AscendC::LocalTensor<half> x = xQueue_.AllocTensor<half>();
        AscendC::DataCopy(x, x_[input], AscendC::DataCopyParams(t_.rows, depth / FRACTAL,
                                                                (t_.inputs - depth) / FRACTAL, 0));
        xQueue_.EnQue(x);
        x = xQueue_.DeQue<half>();
        for (int32_t row = 0; row < t_.rows; ++row) {
            AscendC::LocalTensor<half> from = x[row * depth];
            AscendC::LocalTensor<Operand> to = spread_[row * t_.tileInputs * FRACTAL];
#if EDGELLAMA_MULTIPLIES_HALF_INTO_FLOAT
            AscendC::Brcb(to, from, depth / BLOCK, AscendC::BrcbRepeatParams(1, BLOCK));
            if (four_) {
                AscendC::Cast(wideX_, from, AscendC::RoundMode::CAST_NONE, depth);
                VectorFence();
            }
#else
            AscendC::Cast(wideX_, from, AscendC::RoundMode::CAST_NONE, depth);
            VectorFence();
            for (int32_t k = 0; k < depth; k += SPREAD) {
                AscendC::Gather(to[k * FRACTAL], wideX_, valueOfBlock_, static_cast<uint32_t>(k * sizeof(float)),
                                Least(SPREAD, depth - k) * FRACTAL);
            }
            VectorFence();
#endif
            if (four_) SumGroups(row, depth);
        }
        VectorFence();
        xQueue_.FreeTensor(x);
    }

    // groupSums[row, panel, group, 8] = the sum of x of the group, for every panel of a tile.
    __aicore__ inline void SumGroups(int32_t row, int32_t depth) {
        const int32_t segments = depth / SEGMENT, groups = depth / t_.group;
        AscendC::LocalTensor<float> here = segmentBlocks_, other = segmentBlocks_[segments * BLOCK];
        AscendC::WholeReduceSum(segmentSums_, wideX_, SEGMENT, segments, 1, 1, SEGMENT / BLOCK);
        VectorFence();
        AscendC::Gather(here, segmentSums_, sumOfBlock_, 0, segments * BLOCK);
        VectorFence();
        for (int32_t n = segments; n > groups; n /= 2) {
            AddPairs(other, here, n / 2);
            AscendC::LocalTensor<float> swap = here;
            here = other;
            other = swap;
        }
        float zero = 0.0f;
        for (int32_t panel = 0; panel < t_.tilePanels; ++panel) {
            AscendC::Adds(groupSums_[(row * t_.tilePanels + panel) * groups * BLOCK], here, zero, groups * BLOCK);
        }
        VectorFence();
    }

    // Adds a tile's products to the sums of its columns.
    __aicore__ inline void Tile(int32_t panel, int32_t panels, int32_t depth) {
        const int32_t segments = panels * (depth / SEGMENT), groups = panels * (depth / t_.group);
        AscendC::Cast(scales_, weights_.Scales(), AscendC::RoundMode::CAST_NONE, groups * FRACTAL);
        if (four_) {
            const int32_t each = depth / t_.group, even = CeilTo(each, 2);
            AscendC::Cast(halfZeros_, weights_.Zeros(), AscendC::RoundMode::CAST_NONE, panels * even * FRACTAL);
            VectorFence();
            for (int32_t p = 0; p < panels; ++p) {
                AscendC::Cast(zeros_[p * each * FRACTAL], halfZeros_[p * even * FRACTAL],
                              AscendC::RoundMode::CAST_NONE, each * FRACTAL);
            }
            VectorFence();
            float quarter = 0.25f;
            AscendC::Muls(zeros_, zeros_, quarter, groups * FRACTAL);
            VectorFence();
            AscendC::Mul(zeros_, zeros_, scales_, groups * FRACTAL);
            for (int32_t part = 0; part < 2; ++part) {
                AscendC::LocalTensor<uint8_t> nibbles = weights_.Nibbles(part == 1, segments);
                AscendC::Cast(half_[part * segments * HALF_CELLS], nibbles, AscendC::RoundMode::CAST_NONE,
                              segments * HALF_CELLS);
                VectorFence();
            }
        } else {
            weights_.Integers(half_, segments);
        }
        weights_.Release();
#if !EDGELLAMA_MULTIPLIES_HALF_INTO_FLOAT
        AscendC::Cast(operand_, half_, AscendC::RoundMode::CAST_NONE, segments * CELLS);
        VectorFence();
#endif
        for (int32_t row = 0; row < t_.rows; ++row) {
            Multiply(row, panels, depth / SEGMENT);
            AscendC::LocalTensor<float> folded = Fold(segments, groups);
            Scale(folded, row, panels, depth / t_.group);
            Sum(folded, row, panel, panels, depth / t_.group);
        }
    }

    // planes[2 * (k % 4) + half of the columns][panel, segment] = the sum over k of weight * x.
    __aicore__ inline void Multiply(int32_t row, int32_t panels, int32_t segments) {
        float zero = 0.0f, sixteenth = 0.0625f;
        const int32_t floats = panels * segments * LANES;
        AscendC::Duplicate(planes_, zero, floats);
        VectorFence();
        const int32_t steps = CELLS / LANES;
        if (!four_) {
            Products(row, panels, segments, 0, steps, CELLS, 0);
            return;
        }
        Products(row, panels, segments, steps / 2, steps, HALF_CELLS, panels * segments * HALF_CELLS);
        AscendC::Muls(planes_, planes_, sixteenth, floats);  // the upper halves of the bytes are 16 times the integers
        VectorFence();
        Products(row, panels, segments, 0, steps / 2, HALF_CELLS, 0);
    }

    // Steps `from` to `to` of a segment. The weights of these steps begin at `base`, and have `cells` per segment.
    __aicore__ inline void Products(int32_t row, int32_t panels, int32_t segments, int32_t from, int32_t to,
                                    int32_t cells, int32_t base) {
        const BinaryRepeatParams params(panels * segments, 1, 1, 1, cells / OPERAND_BLOCK, CELLS / OPERAND_BLOCK);
        AscendC::LocalTensor<Operand> x = spread_[row * t_.tileInputs * FRACTAL];
        for (int32_t step = from; step < to; ++step) {
            for (int32_t p = 0; p < panels; ++p) {
                AscendC::MulAddDst(planes_[p * segments * BLOCK],
                                   operand_[base + p * segments * cells + (step - from) * LANES], x[step * LANES],
                                   static_cast<uint64_t>(LANES), segments, params);
            }
            VectorFence();
        }
    }

    // Folds the planes into two, one for each half of a panel's columns, and the segments of a group into one block.
    __aicore__ inline AscendC::LocalTensor<float> Fold(int32_t segments, int32_t groups) {
        for (int32_t planes = 4; planes >= 2; planes /= 2) {
            AscendC::Add(planes_, planes_, planes_[planes * segments * BLOCK], planes * segments * BLOCK);
            VectorFence();
        }
        AscendC::LocalTensor<float> here = planes_, other = pairs_;
        for (int32_t n = segments; n > groups; n /= 2) {
            AddPairs(other, here, n);
            AscendC::LocalTensor<float> swap = here;
            here = other;
            other = swap;
        }
        return here;
    }

    // folded *= scale, and -= zero * scale * (sum of x).
    __aicore__ inline void Scale(AscendC::LocalTensor<float> folded, int32_t row, int32_t panels, int32_t each) {
        const int32_t groups = panels * each;
        for (int32_t h = 0; h < 2; ++h) {
            MulColumns(folded[h * groups * BLOCK], folded[h * groups * BLOCK], scales_[h * BLOCK], groups);
            if (!four_) continue;
            MulColumns(product_[h * groups * BLOCK], groupSums_[row * t_.tilePanels * each * BLOCK], zeros_[h * BLOCK],
                       groups);
        }
        VectorFence();
        if (!four_) return;
        AscendC::Sub(folded, folded, product_, 2 * groups * BLOCK);
        VectorFence();
    }

    // Adds the groups of each panel, then adds the result to the sums of the columns.
    __aicore__ inline void Sum(AscendC::LocalTensor<float> folded, int32_t row, int32_t panel, int32_t panels,
                               int32_t groups) {
        for (int32_t n = groups; n > 1;) {  // adds the second half of the groups to the first half
            const int32_t kept = (n + 1) / 2, moved = n - kept;
            for (int32_t c = 0; c < moved; c += BLOCK) {
                AscendC::Add(folded[c * BLOCK], folded[c * BLOCK], folded[(kept + c) * BLOCK],
                             static_cast<uint64_t>(Least(BLOCK, moved - c) * BLOCK), 2 * panels,
                             BinaryRepeatParams(1, 1, 1, groups, groups, groups));
            }
            VectorFence();
            n = kept;
        }
        AscendC::LocalTensor<float> sums = sums_[(row * t_.blockPanels + panel) * FRACTAL];
        AscendC::Add(sums, sums, folded, static_cast<uint64_t>(FRACTAL), panels,
                     BinaryRepeatParams(1, 1, panels * groups, 2, 2, groups));
        VectorFence();
    }

    // dst[i] = src[2 i] + src[2 i + 1], for n blocks.
    __aicore__ inline void AddPairs(AscendC::LocalTensor<float> dst, AscendC::LocalTensor<float> src, int32_t n) {
        const BinaryRepeatParams params(1, 2, 2, 8, 16, 16);
        const int32_t whole = n / BLOCK, rest = n % BLOCK;
        if (whole > 0) AscendC::Add(dst, src, src[BLOCK], static_cast<uint64_t>(LANES), whole, params);
        if (rest > 0) {
            AscendC::LocalTensor<float> from = src[whole * 2 * LANES];
            AscendC::Add(dst[whole * LANES], from, from[BLOCK], static_cast<uint64_t>(rest * BLOCK), 1, params);
        }
        VectorFence();
    }

    // dst = src * column, for n blocks of 8. column: the first of the n blocks, each followed by one of other columns.
    __aicore__ inline void MulColumns(AscendC::LocalTensor<float> dst, AscendC::LocalTensor<float> src,
                                      AscendC::LocalTensor<float> column, int32_t n) {
        const BinaryRepeatParams params(1, 1, 2, 8, 8, 16);
        const int32_t whole = n / BLOCK, rest = n % BLOCK;
        if (whole > 0) AscendC::Mul(dst, src, column, static_cast<uint64_t>(LANES), whole, params);
        if (rest > 0) {
            AscendC::Mul(dst[whole * LANES], src[whole * LANES], column[whole * 2 * LANES],
                         static_cast<uint64_t>(rest * BLOCK), 1, params);
        }
    }

    __aicore__ inline void Store(int32_t first, int32_t panels) {
        const int32_t width = panels * FRACTAL;
        for (int32_t row = 0; row < t_.rows; ++row) {
            const int64_t at = static_cast<int64_t>(row) * t_.columns + first * FRACTAL;
            AscendC::LocalTensor<float> sums = sums_[row * t_.blockPanels * FRACTAL];
            if (t_.wide != 0) {
                AscendC::LocalTensor<float> out = outQueue_.AllocTensor<float>();
                float zero = 0.0f;
                AscendC::Adds(out, sums, zero, width);
                outQueue_.EnQue(out);
                out = outQueue_.DeQue<float>();
                AscendC::DataCopy(wideY_[at], out, width);
                outQueue_.FreeTensor(out);
            } else {
                AscendC::LocalTensor<half> out = outQueue_.AllocTensor<half>();
                AscendC::Cast(out, sums, AscendC::RoundMode::CAST_NONE, width);
                outQueue_.EnQue(out);
                out = outQueue_.DeQue<half>();
                AscendC::DataCopy(y_[at], out, width);
                outQueue_.FreeTensor(out);
            }
        }
        VectorFence();
    }

    QuantLinearTiling t_;
    bool four_ = false;
    QuantWeights weights_;
    AscendC::GlobalTensor<half> x_, y_;
    AscendC::GlobalTensor<float> wideY_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> xQueue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> outQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> halfBuffer_, operandBuffer_, spreadBuffer_, spreadTable_, planeBuffer_,
        pairBuffer_, scaleBuffer_, sumBuffer_, wideBuffer_, zeroBuffer_, groupSumBuffer_, segmentSumBuffer_;
    AscendC::LocalTensor<half> half_, halfZeros_;
    AscendC::LocalTensor<Operand> operand_, spread_;
    AscendC::LocalTensor<float> planes_, pairs_, scales_, sums_, wideX_, zeros_, product_, groupSums_, segmentSums_,
        segmentBlocks_;
    AscendC::LocalTensor<uint32_t> valueOfBlock_, sumOfBlock_;
};

}  // namespace edgellama

#endif
