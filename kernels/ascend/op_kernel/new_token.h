// Prepares an item of the decode kernel: the rotated, scaled queries and the tail of its keys and values go to the
// workspace, the new key and value also to the caches.
#ifndef EDGELLAMA_NEW_TOKEN_H
#define EDGELLAMA_NEW_TOKEN_H

#include "decode_steps.h"

namespace edgellama {

class NewToken {
public:
    // Rows (queries and the new key) that the rotary embedding takes at a time.
    static __aicore__ inline int32_t Rows(int32_t ratio, int32_t dim) { return Least(ratio + 1, 2048 / dim); }

    // Bytes of workspace for the queries and the tails of one item.
    static __aicore__ inline int32_t Bytes(int32_t ratio, int32_t dim) {
        return (ratio + 2 * FRACTAL) * dim * static_cast<int32_t>(sizeof(half));
    }

    __aicore__ inline void Init(GM_ADDR qkv, GM_ADDR cos, GM_ADDR sin, GM_ADDR prepared,
                                AscendC::GlobalTensor<half> kCache, AscendC::GlobalTensor<half> vCache,
                                const AttentionSizes& sizes, AscendC::TPipe* pipe) {
        sizes_ = sizes;
        dim_ = sizes.headDim;
        ratio_ = sizes.heads / sizes.groups;
        kCache_ = kCache;
        vCache_ = vCache;
        qkv_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(qkv));
        cos_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(cos));
        sin_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(sin));
        prepared_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(prepared));
        most_ = Rows(ratio_, dim_);
        pipe->InitBuffer(inQueue_, 1, most_ * dim_ * sizeof(half));
        pipe->InitBuffer(tableQueue_, 1, dim_ * sizeof(float));
        pipe->InitBuffer(passQueue_, 2, FRACTAL * dim_ * sizeof(half));
        pipe->InitBuffer(rotatedQueue_, 1, most_ * dim_ * sizeof(half));
        pipe->InitBuffer(scratchBuffer_, most_ * (2 * dim_ + LANES) * sizeof(float));
        pipe->InitBuffer(zeroBuffer_, FRACTAL * dim_ * sizeof(half));
        scratch_ = scratchBuffer_.Get<float>();
        zeros_ = zeroBuffer_.Get<half>();
        half zero = static_cast<half>(0.0f);
        AscendC::Duplicate(zeros_, zero, FRACTAL * dim_);
        AscendC::TQueSync<PIPE_V, PIPE_MTE3> vectorToStore;
        AscendC::TEventID event = pipe->FetchEventID(AscendC::HardEvent::V_MTE3);
        vectorToStore.SetFlag(event);
        vectorToStore.WaitFlag(event);
    }

    // Prepares the item of a step, its first one.
    __aicore__ inline void Prepare(const DecodeStep& step) {
        const int64_t row = static_cast<int64_t>(step.row) * (sizes_.heads + 2 * sizes_.groups) * dim_;
        const int64_t key = row + (sizes_.heads + step.group) * dim_, value = key + sizes_.groups * dim_;
        const int32_t rows = ratio_ + (step.leads ? 1 : 0), tail = step.rest + (step.leads ? 1 : 0);
        const int64_t position = static_cast<int64_t>(step.start) * (dim_ / 2);
        AscendC::LocalTensor<float> table = tableQueue_.AllocTensor<float>();
        AscendC::DataCopy(table, cos_[position], dim_ / 2);
        AscendC::DataCopy(table[dim_ / 2], sin_[position], dim_ / 2);
        tableQueue_.EnQue(table);
        table = tableQueue_.DeQue<float>();
        for (int32_t r = 0; r < rows; r += most_) {
            const int32_t n = Least(most_, rows - r), queries = Most(0, Least(n, ratio_ - r));
            AscendC::LocalTensor<half> in = inQueue_.AllocTensor<half>();
            if (queries > 0) {
                AscendC::DataCopy(in, qkv_[row + (step.group * ratio_ + r) * dim_], queries * dim_);
            }
            if (queries < n) AscendC::DataCopy(in[queries * dim_], qkv_[key], dim_);
            inQueue_.EnQue(in);
            if (r == 0 && tail > 0) PassValues(step, value, tail);
            if (r == 0 && step.rest > 0) PassKeys(step);
            Rotated(table, n, queries);
            AscendC::LocalTensor<half> rotated = rotatedQueue_.DeQue<half>();
            if (queries > 0) AscendC::DataCopy(Queries(step)[r * dim_], rotated, queries * dim_);
            if (queries < n) {
                AscendC::DataCopy(KeyTail(step)[step.rest * dim_], rotated[queries * dim_], dim_);
                AscendC::DataCopy(kCache_[CacheAt(step, step.start)], rotated[queries * dim_], dim_);
            }
            rotatedQueue_.FreeTensor(rotated);
        }
        tableQueue_.FreeTensor(table);
        if (tail > 0 && tail < FRACTAL) {
            AscendC::DataCopy(KeyTail(step)[tail * dim_], zeros_, (FRACTAL - tail) * dim_);
            AscendC::DataCopy(ValueTail(step)[tail * dim_], zeros_, (FRACTAL - tail) * dim_);
        }
    }

    // The workspace of a step's item: queries [H / G, D], and the tails [16, D].
    __aicore__ inline AscendC::GlobalTensor<half> Queries(const DecodeStep& step) const {
        return prepared_[step.itemTurn * (ratio_ + 2 * FRACTAL) * dim_];
    }
    __aicore__ inline AscendC::GlobalTensor<half> KeyTail(const DecodeStep& step) const {
        return Queries(step)[ratio_ * dim_];
    }
    __aicore__ inline AscendC::GlobalTensor<half> ValueTail(const DecodeStep& step) const {
        return Queries(step)[(ratio_ + FRACTAL) * dim_];
    }

    // Offset of a position of a step's head in a cache, in elements.
    __aicore__ inline int64_t CacheAt(const DecodeStep& step, int32_t position) const {
        return (static_cast<int64_t>(step.row * sizes_.groups + step.group) * sizes_.capacity + position) * dim_;
    }

private:
    // Copies the last positions and the new value to the tail, and the new value to the cache.
    __aicore__ inline void PassValues(const DecodeStep& step, int64_t value, int32_t tail) {
        AscendC::LocalTensor<half> values = passQueue_.AllocTensor<half>();
        if (step.rest > 0) AscendC::DataCopy(values, vCache_[CacheAt(step, step.end)], step.rest * dim_);
        if (step.leads) AscendC::DataCopy(values[step.rest * dim_], qkv_[value], dim_);
        passQueue_.EnQue(values);
        values = passQueue_.DeQue<half>();
        AscendC::DataCopy(ValueTail(step), values, tail * dim_);
        if (step.leads) AscendC::DataCopy(vCache_[CacheAt(step, step.start)], values[step.rest * dim_], dim_);
        passQueue_.FreeTensor(values);
    }

    __aicore__ inline void PassKeys(const DecodeStep& step) {
        AscendC::LocalTensor<half> keys = passQueue_.AllocTensor<half>();
        AscendC::DataCopy(keys, kCache_[CacheAt(step, step.end)], step.rest * dim_);
        passQueue_.EnQue(keys);
        keys = passQueue_.DeQue<half>();
        AscendC::DataCopy(KeyTail(step), keys, step.rest * dim_);
        passQueue_.FreeTensor(keys);
    }

    // Rotates n rows from inQueue_ into rotatedQueue_; the first ones are queries and scaled.
    __aicore__ inline void Rotated(AscendC::LocalTensor<float> cos, int32_t n, int32_t queries) {
        AscendC::LocalTensor<half> in = inQueue_.DeQue<half>();
        AscendC::LocalTensor<float> x = scratch_, y = scratch_[most_ * dim_], temp = scratch_[2 * most_ * dim_];
        AscendC::Cast(x, in, AscendC::RoundMode::CAST_NONE, n * dim_);
        VectorFence();
        inQueue_.FreeTensor(in);
        Rotate(y, x, cos, cos[dim_ / 2], temp, n, dim_, dim_, 0);
        float scale = sizes_.scale;
        if (queries > 0) AscendC::Muls(y, y, scale, queries * dim_);
        VectorFence();
        AscendC::LocalTensor<half> rotated = rotatedQueue_.AllocTensor<half>();
        AscendC::Cast(rotated, y, AscendC::RoundMode::CAST_NONE, n * dim_);
        VectorFence();
        rotatedQueue_.EnQue(rotated);
    }

    AttentionSizes sizes_;
    int32_t dim_ = 0, ratio_ = 0, most_ = 0;  // most_: rows at a time
    AscendC::GlobalTensor<half> qkv_, kCache_, vCache_, prepared_;
    AscendC::GlobalTensor<float> cos_, sin_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> inQueue_, tableQueue_;
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> passQueue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> rotatedQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> scratchBuffer_, zeroBuffer_;
    AscendC::LocalTensor<float> scratch_;
    AscendC::LocalTensor<half> zeros_;
};

}  // namespace edgellama

#endif
