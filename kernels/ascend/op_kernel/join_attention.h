// The second step of attention with SplitAttention: joins the records of each head, or copies the result of a prefill.
//
// One token per row (decode): SplitAttention wrote `parts` records per row and key/value head, each with a weighted sum
// of values, the maximum of its scores and the sum of its weights. A work item is one of these heads. Several tokens
// per row (prefill): SplitAttention wrote the result, and this kernel copies it, because both forms are gears of one
// graph.
#ifndef EDGELLAMA_JOIN_ATTENTION_H
#define EDGELLAMA_JOIN_ATTENTION_H

#include "attention_tiling_data.h"
#include "chip.h"
#include "vector_ops.h"

namespace edgellama {

class JoinRecords {
public:
    __aicore__ inline void Init(GM_ADDR partial, GM_ADDR joined, const JoinTiling& tiling, AscendC::TPipe* pipe) {
        t_ = tiling;
        width_ = tiling.ratio * tiling.headDim;
        stats_ = tiling.ratio * BLOCK;
        record_ = width_ + 2 * stats_;
        partial_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(partial));
        joined_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(joined));
        pipe->InitBuffer(inQueue_, 2, record_ * sizeof(float));
        pipe->InitBuffer(outQueue_, 2, width_ * sizeof(half));
        pipe->InitBuffer(sumBuffer_, record_ * sizeof(float));
        pipe->InitBuffer(factorBuffer_, 2 * stats_ * sizeof(float));
        sum_ = sumBuffer_.Get<float>();
        factors_ = factorBuffer_.Get<float>();
    }

    __aicore__ inline void Process() {
        for (int32_t head = static_cast<int32_t>(AscendC::GetBlockIdx()); head < t_.heads; head += t_.workers) {
            Load(head, 0);
            for (int32_t part = 0; part < t_.parts; ++part) {
                AscendC::LocalTensor<float> record = inQueue_.DeQue<float>();
                if (part + 1 < t_.parts) Load(head, part + 1);
                if (part == 0) {
                    float zero = 0.0f;
                    AscendC::Adds(sum_, record, zero, record_);
                    VectorFence();
                } else {
                    Join(record);
                }
                inQueue_.FreeTensor(record);
            }
            Store(head);
        }
    }

private:
    __aicore__ inline void Load(int32_t head, int32_t part) {
        AscendC::LocalTensor<float> record = inQueue_.AllocTensor<float>();
        AscendC::DataCopy(record, partial_[(static_cast<int64_t>(head) * t_.parts + part) * record_], record_);
        inQueue_.EnQue(record);
    }

    // sum_ = sum_ * exp(max - highest) + record * exp(record's max - highest), likewise the sums of the weights.
    __aicore__ inline void Join(AscendC::LocalTensor<float> record) {
        AscendC::LocalTensor<float> max = sum_[width_], otherMax = record[width_], highest = factors_,
                                    mine = factors_[stats_];
        AscendC::Max(highest, max, otherMax, stats_);
        VectorFence();
        AscendC::Sub(mine, max, highest, stats_);
        AscendC::Sub(otherMax, otherMax, highest, stats_);
        VectorFence();
        AscendC::Exp(mine, mine, stats_);
        AscendC::Exp(otherMax, otherMax, stats_);
        float zero = 0.0f;
        AscendC::Adds(max, highest, zero, stats_);
        VectorFence();
        MulRows(sum_, sum_, mine, t_.ratio, t_.headDim, t_.headDim);
        MulRows(record, record, otherMax, t_.ratio, t_.headDim, t_.headDim);
        AscendC::Mul(sum_[width_ + stats_], sum_[width_ + stats_], mine, stats_);
        AscendC::Mul(record[width_ + stats_], record[width_ + stats_], otherMax, stats_);
        VectorFence();
        AscendC::Add(sum_, sum_, record, width_);
        AscendC::Add(sum_[width_ + stats_], sum_[width_ + stats_], record[width_ + stats_], stats_);
        VectorFence();
    }

    __aicore__ inline void Store(int32_t head) {
        DivRows(sum_, sum_, sum_[width_ + stats_], t_.ratio, t_.headDim, t_.headDim);
        AscendC::LocalTensor<half> result = outQueue_.AllocTensor<half>();
        AscendC::Cast(result, sum_, AscendC::RoundMode::CAST_NONE, width_);
        VectorFence();
        outQueue_.EnQue(result);
        result = outQueue_.DeQue<half>();
        AscendC::DataCopy(joined_[static_cast<int64_t>(head) * width_], result, width_);
        outQueue_.FreeTensor(result);
    }

    JoinTiling t_;
    int32_t width_ = 0, stats_ = 0, record_ = 0;  // floats: the weighted sum; the maxima, or the sums; all of a record
    AscendC::GlobalTensor<float> partial_;
    AscendC::GlobalTensor<half> joined_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> inQueue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> outQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuffer_, factorBuffer_;
    AscendC::LocalTensor<float> sum_, factors_;
};

class CopyResult {
public:
    __aicore__ inline void Init(GM_ADDR out, GM_ADDR joined, const JoinTiling& tiling, AscendC::TPipe* pipe) {
        t_ = tiling;
        out_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(out));
        joined_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(joined));
        pipe->InitBuffer(queue_, 2, tiling.chunk * sizeof(half));
    }

    __aicore__ inline void Process() {
        const int64_t step = static_cast<int64_t>(t_.workers) * t_.chunk;
        for (int64_t at = AscendC::GetBlockIdx() * t_.chunk; at < t_.elements; at += step) {
            const int64_t left = t_.elements - at;
            const int32_t n = left < t_.chunk ? static_cast<int32_t>(left) : t_.chunk;
            AscendC::LocalTensor<half> buffer = queue_.AllocTensor<half>();
            AscendC::DataCopy(buffer, out_[at], n);
            queue_.EnQue(buffer);
            buffer = queue_.DeQue<half>();
            AscendC::DataCopy(joined_[at], buffer, n);
            queue_.FreeTensor(buffer);
        }
    }

private:
    JoinTiling t_;
    AscendC::GlobalTensor<half> out_, joined_;
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> queue_;
};

}  // namespace edgellama

#endif
