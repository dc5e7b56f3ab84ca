// The online softmax of a few long rows: the scores of a decode step. OnlineSoftmax (vector_ops.h) loops over 64
// columns at a time, for many short rows. Here one instruction covers 64 columns of all rows, or whole rows.
#ifndef EDGELLAMA_WIDE_SOFTMAX_H
#define EDGELLAMA_WIDE_SOFTMAX_H

#include "vector_ops.h"

namespace edgellama {

constexpr int32_t WIDE = 512;  // columns are padded to a multiple: 8 maxima of 64 columns are one 32-byte block
constexpr int32_t MOST_REPEATS = 255;

class WideSoftmax {
public:
    // Bytes of unified buffer for `rows` rows of at most `columns` columns, a multiple of WIDE.
    static __aicore__ inline int32_t Bytes(int32_t rows, int32_t columns) {
        return (7 * rows * BLOCK + 4 * rows * (columns / LANES)) * 4;
    }

    __aicore__ inline void Init(LocalTensor<float> memory, int32_t rows, int32_t columns, AscendC::TPipe* pipe) {
        rows_ = rows;
        const int32_t row8 = rows * BLOCK, runs = rows * (columns / LANES);
        max8 = memory;
        sum8 = memory[row8];
        factor8 = memory[2 * row8];
        new8_ = memory[3 * row8];
        temp8_ = memory[4 * row8];
        pairs_ = memory[5 * row8];
        runs_ = memory[7 * row8];
        runPairs_ = memory[7 * row8 + runs];  // [runs, 2]
        LocalTensor<int32_t> table = memory[6 * row8].ReinterpretCast<int32_t>();
        Ramp(table, static_cast<int32_t>(0), BLOCK, static_cast<int32_t>(2 * sizeof(float)), row8);
        pairOfRow_ = table.ReinterpretCast<uint32_t>();
        // The first number of each pair: byte offsets 0, 8, .. A run of 8 equal numbers, then each one's own offset.
        LocalTensor<int32_t> every = memory[7 * row8 + 3 * runs].ReinterpretCast<int32_t>();
        for (int32_t i = 0; i < BLOCK; ++i) every.SetValue(i, static_cast<int32_t>(i * 2 * sizeof(float)));
        AscendC::TQueSync<PIPE_S, PIPE_V> written;
        AscendC::TEventID event = pipe->FetchEventID(AscendC::HardEvent::S_V);
        written.SetFlag(event);
        written.WaitFlag(event);
        for (int32_t done = BLOCK; done < runs; done *= 2) {
            int32_t offset = static_cast<int32_t>(done * 2 * sizeof(float));
            AscendC::Adds(every[done], every, offset, Least(done, runs - done));
            VectorFence();
        }
        firstOfPair_ = every.ReinterpretCast<uint32_t>();
    }

    __aicore__ inline void Reset() {
        float masked = MASKED, zero = 0.0f;
        AscendC::Duplicate(max8, masked, rows_ * BLOCK);
        AscendC::Duplicate(sum8, zero, rows_ * BLOCK);
        VectorFence();
    }

    // Replaces scores [rows, columns] by exp(scores - new maximum), and updates max8 and sum8. The caller multiplies its
    // sums by factor8 = exp(old maximum - new maximum).
    __aicore__ inline void Step(LocalTensor<float> scores, int32_t columns) {
        const int32_t runs = columns / LANES, n = rows_ * BLOCK, all = rows_ * columns;
        for (int32_t done = 0; done < rows_ * runs; done += MOST_REPEATS / BLOCK * BLOCK) {
            AscendC::WholeReduceMax(runPairs_[2 * done], scores[done * LANES], LANES,
                                    Least(MOST_REPEATS / BLOCK * BLOCK, rows_ * runs - done), 1, 1, BLOCK);
        }
        VectorFence();
        AscendC::Gather(runs_, runPairs_, firstOfPair_, 0, static_cast<uint32_t>(rows_ * runs));
        VectorFence();
        AscendC::WholeReduceMax(pairs_, runs_, runs, rows_, 1, 1, runs / BLOCK);
        VectorFence();
        AscendC::Gather(new8_, pairs_, pairOfRow_, 0, static_cast<uint32_t>(n));
        VectorFence();
        AscendC::Max(new8_, new8_, max8, n);
        VectorFence();
        SubtractMaximum(scores, runs);
        AscendC::Sub(factor8, max8, new8_, n);
        VectorFence();
        AscendC::Exp(scores, scores, all);
        AscendC::Exp(factor8, factor8, n);
        float zero = 0.0f;
        AscendC::Adds(max8, new8_, zero, n);
        VectorFence();
        for (int32_t done = 0; done < rows_ * runs; done += MOST_REPEATS / BLOCK * BLOCK) {
            AscendC::WholeReduceSum(runs_[done], scores[done * LANES], LANES,
                                    Least(MOST_REPEATS / BLOCK * BLOCK, rows_ * runs - done), 1, 1, BLOCK);
        }
        AscendC::Mul(sum8, sum8, factor8, n);
        VectorFence();
        AscendC::WholeReduceSum(pairs_, runs_, runs, rows_, 2, 1, runs / BLOCK);
        VectorFence();
        AscendC::Gather(temp8_, pairs_, pairOfRow_, 0, static_cast<uint32_t>(n));
        VectorFence();
        AscendC::Add(sum8, sum8, temp8_, n);
        VectorFence();
    }

    LocalTensor<float> max8, sum8, factor8;  // row8 each; sum8 follows max8 in memory

private:
    // By rows or by runs of 64 columns: whatever takes fewer instructions.
    __aicore__ inline void SubtractMaximum(LocalTensor<float> scores, int32_t runs) {
        if (rows_ <= runs || runs * BLOCK > MOST_REPEATS) {
            for (int32_t r = 0; r < rows_; ++r) {
                AscendC::Sub(scores[r * runs * LANES], scores[r * runs * LANES], new8_[r * BLOCK],
                             static_cast<uint64_t>(LANES), runs, BinaryRepeatParams(1, 1, 0, BLOCK, BLOCK, 0));
            }
        } else {
            for (int32_t c = 0; c < runs; ++c) {
                AscendC::Sub(scores[c * LANES], scores[c * LANES], new8_, static_cast<uint64_t>(LANES), rows_,
                             BinaryRepeatParams(1, 1, 0, runs * BLOCK, runs * BLOCK, 1));
            }
        }
    }

    int32_t rows_ = 0;
    LocalTensor<float> new8_, temp8_, pairs_, runs_, runPairs_;
    LocalTensor<uint32_t> pairOfRow_, firstOfPair_;
};

}  // namespace edgellama

#endif
