// Row-wise vector arithmetic in float32, with instructions that all three chips have.
//
// Every matrix has a row stride that is a multiple of 8 floats. "row8" is a vector with one value per row, stored as
// [rows, 8] with eight equal values: one 32-byte block per row. An instruction applies it to a whole row with a block
// stride of 0. Every function ends with a barrier of the vector pipe (PipeBarrier), so that the next vector instruction
// can read its results.
#ifndef EDGELLAMA_VECTOR_OPS_H
#define EDGELLAMA_VECTOR_OPS_H

#include "kernel_operator.h"

namespace edgellama {

using AscendC::BinaryRepeatParams;
using AscendC::LocalTensor;
using AscendC::UnaryRepeatParams;

constexpr int32_t LANES = 64;  // floats of one vector repeat
constexpr int32_t BLOCK = 8;   // floats of one 32-byte block
constexpr int32_t FRACTAL = 16;  // rows and columns of a block of the cube unit, in float16; also 32 bytes of float16
constexpr float MASKED = -1.0e30f;  // a hidden score

__aicore__ inline int32_t Least(int32_t a, int32_t b) { return a < b ? a : b; }
__aicore__ inline int32_t Most(int32_t a, int32_t b) { return a > b ? a : b; }
__aicore__ inline int32_t CeilDiv(int32_t value, int32_t step) { return (value + step - 1) / step; }
__aicore__ inline int32_t CeilTo(int32_t value, int32_t step) { return CeilDiv(value, step) * step; }

__aicore__ inline void VectorFence() { AscendC::PipeBarrier<PIPE_V>(); }

// table[i] = first + (i / run) * step for i < count; run is a multiple of 8. Each step doubles the filled part.
template <typename T>
__aicore__ inline void Ramp(LocalTensor<T> table, T first, int32_t run, T step, int32_t count) {
    AscendC::Duplicate(table, first, Least(run, count));
    VectorFence();
    for (int32_t done = run; done < count; done *= 2) {
        T offset = static_cast<T>(done / run) * step;
        AscendC::Adds(table[done], table, offset, Least(done, count - done));
        VectorFence();
    }
}

// dst = src - row8, for matrices [rows, cols] with a row stride of `stride` floats.
__aicore__ inline void SubRows(LocalTensor<float> dst, LocalTensor<float> src, LocalTensor<float> row8, int32_t rows,
                               int32_t cols, int32_t stride) {
    for (int32_t c = 0; c < cols; c += LANES) {
        AscendC::Sub(dst[c], src[c], row8, static_cast<uint64_t>(Least(LANES, cols - c)), rows,
                     BinaryRepeatParams(1, 1, 0, stride / BLOCK, stride / BLOCK, 1));
    }
    VectorFence();
}

// dst = src * row8, for matrices [rows, cols] with a row stride of `stride` floats.
__aicore__ inline void MulRows(LocalTensor<float> dst, LocalTensor<float> src, LocalTensor<float> row8, int32_t rows,
                               int32_t cols, int32_t stride) {
    for (int32_t c = 0; c < cols; c += LANES) {
        AscendC::Mul(dst[c], src[c], row8, static_cast<uint64_t>(Least(LANES, cols - c)), rows,
                     BinaryRepeatParams(1, 1, 0, stride / BLOCK, stride / BLOCK, 1));
    }
    VectorFence();
}

// dst = src / row8, for matrices [rows, cols] with a row stride of `stride` floats.
__aicore__ inline void DivRows(LocalTensor<float> dst, LocalTensor<float> src, LocalTensor<float> row8, int32_t rows,
                               int32_t cols, int32_t stride) {
    for (int32_t c = 0; c < cols; c += LANES) {
        AscendC::Div(dst[c], src[c], row8, static_cast<uint64_t>(Least(LANES, cols - c)), rows,
                     BinaryRepeatParams(1, 1, 0, stride / BLOCK, stride / BLOCK, 1));
    }
    VectorFence();
}

// Rotary embedding (arXiv:2104.09864) in the half-split layout, for `repeats` rows:
// y = (lo cos - hi sin, hi cos + lo sin), where lo and hi are the two halves of a row of x.
// - x, y: [repeats, headDim] floats; xStride: floats between the starts of their rows.
// - cos, sin: [repeats, headDim / 2] floats; tableStride: floats between the starts of their rows, 0 for a single row.
// - temp: [repeats, 64] floats.
__aicore__ inline void Rotate(LocalTensor<float> y, LocalTensor<float> x, LocalTensor<float> cos,
                              LocalTensor<float> sin, LocalTensor<float> temp, int32_t repeats, int32_t headDim,
                              int32_t xStride, int32_t tableStride) {
    const int32_t half = headDim / 2;
    const BinaryRepeatParams rows(1, 1, 1, xStride / BLOCK, xStride / BLOCK, tableStride / BLOCK);
    const BinaryRepeatParams toTemp(1, 1, 1, LANES / BLOCK, xStride / BLOCK, tableStride / BLOCK);
    const BinaryRepeatParams fromTemp(1, 1, 1, xStride / BLOCK, xStride / BLOCK, LANES / BLOCK);
    for (int32_t c = 0; c < half; c += LANES) {
        const uint64_t mask = static_cast<uint64_t>(Least(LANES, half - c));
        AscendC::Mul(y[c], x[c], cos[c], mask, repeats, rows);
        AscendC::Mul(temp, x[half + c], sin[c], mask, repeats, toTemp);
        VectorFence();
        AscendC::Sub(y[c], y[c], temp, mask, repeats, fromTemp);
        VectorFence();
        AscendC::Mul(y[half + c], x[half + c], cos[c], mask, repeats, rows);
        AscendC::Mul(temp, x[c], sin[c], mask, repeats, toTemp);
        VectorFence();
        AscendC::Add(y[half + c], y[half + c], temp, mask, repeats, fromTemp);
        VectorFence();
    }
}

// The running maximum and sum of an online softmax (Milakov and Gimelshein, arXiv:1805.02867; Dao et al.,
// arXiv:2205.14135), and the tables that its steps need.
class OnlineSoftmax {
public:
    // Bytes of unified buffer for at most `rows` rows.
    static __aicore__ inline int32_t Bytes(int32_t rows) { return rows * (6 * BLOCK + BLOCK) * 4; }

    __aicore__ inline void Init(LocalTensor<float> memory, int32_t rows) {
        max8 = memory;
        sum8 = memory[rows * BLOCK];
        factor8 = memory[2 * rows * BLOCK];
        new8_ = memory[3 * rows * BLOCK];
        temp8_ = memory[4 * rows * BLOCK];
        pairs_ = memory[5 * rows * BLOCK];  // [rows, 2]: (value, index), the order of WholeReduceMax on every chip
        LocalTensor<int32_t> table = memory[6 * rows * BLOCK].template ReinterpretCast<int32_t>();
        Ramp(table, static_cast<int32_t>(0), BLOCK, static_cast<int32_t>(2 * sizeof(float)), rows * BLOCK);
        pairOfRow_ = table.template ReinterpretCast<uint32_t>();
    }

    __aicore__ inline void Reset(int32_t rows) {
        float masked = MASKED, zero = 0.0f;
        AscendC::Duplicate(max8, masked, rows * BLOCK);
        AscendC::Duplicate(sum8, zero, rows * BLOCK);
        VectorFence();
    }

    // Replaces scores [rows, cols] by exp(scores - new maximum), and updates max8 and sum8. The caller must multiply
    // its accumulated values by factor8 = exp(old maximum - new maximum).
    __aicore__ inline void Step(LocalTensor<float> scores, int32_t rows, int32_t cols, int32_t stride) {
        const int32_t n = rows * BLOCK;
        for (int32_t c = 0; c < cols; c += LANES) {
            AscendC::WholeReduceMax(pairs_, scores[c], Least(LANES, cols - c), rows, 1, 1, stride / BLOCK);
            VectorFence();
            Spread(c == 0 ? new8_ : temp8_, rows);
            AscendC::Max(new8_, new8_, c == 0 ? max8 : temp8_, n);
            VectorFence();
        }
        AscendC::Sub(factor8, max8, new8_, n);
        VectorFence();
        AscendC::Exp(factor8, factor8, n);
        float zero = 0.0f;
        AscendC::Adds(max8, new8_, zero, n);
        SubRows(scores, scores, new8_, rows, cols, stride);
        AscendC::Mul(sum8, sum8, factor8, n);
        for (int32_t c = 0; c < cols; c += LANES) {
            AscendC::Exp(scores[c], scores[c], static_cast<uint64_t>(Least(LANES, cols - c)), rows,
                         UnaryRepeatParams(1, 1, stride / BLOCK, stride / BLOCK));
        }
        VectorFence();
        for (int32_t c = 0; c < cols; c += LANES) {
            SumRows(temp8_, scores[c], rows, Least(LANES, cols - c), stride);
            AscendC::Add(sum8, sum8, temp8_, n);
            VectorFence();
        }
    }

    // row8 = the sums of the rows of src [rows, cols]; cols <= 64.
    __aicore__ inline void SumRows(LocalTensor<float> row8, LocalTensor<float> src, int32_t rows, int32_t cols,
                                   int32_t stride) {
        AscendC::WholeReduceSum(pairs_, src, cols, rows, 2, 1, stride / BLOCK);
        VectorFence();
        Spread(row8, rows);
    }

    LocalTensor<float> max8, sum8, factor8;  // row8 each; sum8 follows max8 in memory

private:
    // row8 = the first number of each pair, eight times. Gather does it, because the 310B has no Brcb.
    __aicore__ inline void Spread(LocalTensor<float> row8, int32_t rows) {
        AscendC::Gather(row8, pairs_, pairOfRow_, 0, rows * BLOCK);
        VectorFence();
    }

    LocalTensor<float> new8_, temp8_, pairs_;
    LocalTensor<uint32_t> pairOfRow_;
};

}  // namespace edgellama

#endif
