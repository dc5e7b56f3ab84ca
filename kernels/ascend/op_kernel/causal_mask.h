// Adds the causal mask to a tile of scores: a large negative number to every hidden score.
//
// The mask is computed from one ramp over the rows and one over the columns. It costs a few vector instructions per
// tile, and nothing for a tile without hidden scores. A comparison with a select would need bit masks, whose layout
// differs between the chips.
#ifndef EDGELLAMA_CAUSAL_MASK_H
#define EDGELLAMA_CAUSAL_MASK_H

#include "vector_ops.h"

namespace edgellama {

class CausalMask {
public:
    // Bytes of unified buffer for scores [rows, columns].
    static __aicore__ inline int32_t Bytes(int32_t rows, int32_t columns) { return (rows * BLOCK + 2 * columns) * 4; }

    // memory: Bytes(rows, columns) of unified buffer. Row i of the scores belongs to query token i / ratio of the tile.
    // window: positions that a token sees, its own included; 0: all earlier positions.
    __aicore__ inline void Init(LocalTensor<float> memory, int32_t rows, int32_t columns, int32_t ratio,
                                int32_t window, AscendC::TPipe* pipe) {
        window_ = window;
        stride_ = columns;
        token8_ = memory;
        column_ = memory[rows * BLOCK];
        shifted_ = memory[rows * BLOCK + columns];
        Ramp(token8_, 0.0f, ratio * BLOCK, 1.0f, rows * BLOCK);
        // column_ = 0, -1, -2, ...: the scalar unit writes eight values, then each step doubles their number.
        for (int32_t i = 0; i < BLOCK; ++i) column_.SetValue(i, static_cast<float>(-i));
        AscendC::TQueSync<PIPE_S, PIPE_V> scalarToVector;
        AscendC::TEventID event = pipe->FetchEventID(AscendC::HardEvent::S_V);
        scalarToVector.SetFlag(event);
        scalarToVector.WaitFlag(event);
        for (int32_t done = BLOCK; done < columns; done *= 2) {
            float offset = static_cast<float>(-done);
            AscendC::Adds(column_[done], column_, offset, Least(done, columns - done));
            VectorFence();
        }
    }

    // Masks scores [rows, n] of the cache positions at .. at + n - 1: positions after the query's own, and positions
    // before its sliding window. first: position of the tile's first token; tokens: number of its tokens.
    // temp: [rows, 64] floats.
    __aicore__ inline void Apply(LocalTensor<float> scores, LocalTensor<float> temp, int32_t rows, int32_t n,
                                 int32_t at, int32_t first, int32_t tokens) {
        const bool future = at + n - 1 > first;
        const bool past = window_ > 0 && first + tokens - 1 - at >= window_;
        if (!future && !past) return;
        // The distance from column j to token i is i - j + (first - at) positions.
        float offset = static_cast<float>(first - at);
        AscendC::Adds(shifted_, column_, offset, n);
        VectorFence();
        if (future) Hide(scores, temp, rows, n, 1.0f, 0.0f);
        if (past) Hide(scores, temp, rows, n, -1.0f, static_cast<float>(window_ - 1));
    }

private:
    // scores += 1e30 * min(sign * distance + margin, 0)
    __aicore__ inline void Hide(LocalTensor<float> scores, LocalTensor<float> temp, int32_t rows, int32_t n,
                                float sign, float margin) {
        float zero = 0.0f, large = -MASKED;
        const UnaryRepeatParams same(1, 1, LANES / BLOCK, LANES / BLOCK);
        for (int32_t c = 0; c < n; c += LANES) {
            const uint64_t mask = static_cast<uint64_t>(Least(LANES, n - c));
            AscendC::Add(temp, shifted_[c], token8_, mask, rows, BinaryRepeatParams(1, 1, 0, LANES / BLOCK, 0, 1));
            VectorFence();
            AscendC::Muls(temp, temp, sign, mask, rows, same);
            VectorFence();
            AscendC::Adds(temp, temp, margin, mask, rows, same);
            VectorFence();
            AscendC::Mins(temp, temp, zero, mask, rows, same);
            VectorFence();
            AscendC::Muls(temp, temp, large, mask, rows, same);
            VectorFence();
            AscendC::Add(scores[c], scores[c], temp, mask, rows,
                         BinaryRepeatParams(1, 1, 1, stride_ / BLOCK, stride_ / BLOCK, LANES / BLOCK));
            VectorFence();
        }
    }

    int32_t window_ = 0, stride_ = 0;
    LocalTensor<float> token8_, column_, shifted_;
};

}  // namespace edgellama

#endif
