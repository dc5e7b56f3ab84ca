// The decode kernel, one token per row: rotary embedding, in-place write of the new key and value, attention over the
// cache.
//
// A work item is a row, a key/value head with its H / G query heads, and a part of the cache positions. The query heads
// are the rows of a matrix, and the cube multiplies them with the keys, then their weights with the values: so the
// time of an item is that of reading its cache. Its keys are in two places:
// - The cache, as far as whole groups of 16 positions go. The kernel reads nothing there that it writes.
// - The tail, a matrix of 16 rows in the workspace: the remaining positions and, in the first part, the new token, then
//   zeros.
// The steps of all items of a core form one chain. While the vector unit computes the softmax of a step, the scores of
// the next step are on their way. With one part, the kernel writes the result. With more parts (SplitAttention), each
// item writes a record to `partial`, and JoinAttention, the next operator of the graph, joins the records of a head.
#ifndef EDGELLAMA_DECODE_ATTENTION_H
#define EDGELLAMA_DECODE_ATTENTION_H

#include "attention_tiling_data.h"
#include "cube_matmul.h"
#include "decode_steps.h"
#include "new_token.h"
#include "wide_softmax.h"

namespace edgellama {

class DecodeAttention {
    using Left = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half>;
    using Keys = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half, true>;
    using Result = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, float>;

public:
    CubeMatmul<Left, Keys, Result> qk;  // the kernel function registers both products before Init
    CubeMatmul<Left, Left, Result> pv;

    __aicore__ inline void Init(GM_ADDR qkv, GM_ADDR cos, GM_ADDR sin, GM_ADDR start, GM_ADDR length, GM_ADDR kCache,
                                GM_ADDR vCache, GM_ADDR out, GM_ADDR partial, GM_ADDR workspace,
                                const DecodeTiling& tiling, AscendC::TPipe* pipe) {
        const AttentionSizes& s = tiling.sizes;
        pipe_ = pipe;
        dim_ = s.headDim;
        ratio_ = s.heads / s.groups;
        columns_ = tiling.columns;
        parts_ = tiling.parts;
        weightRows_ = tiling.weightRows;
        record_ = ratio_ * (dim_ + 2 * BLOCK);
        const int64_t cache = static_cast<int64_t>(s.rows) * s.groups * s.capacity;
        kCache_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(kCache), cache * dim_);
        vCache_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(vCache), cache * dim_);
        out_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(out));
        if (parts_ > 1) partial_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(partial));

        // The workspace of this core: what two items or two steps need at the same time is there twice.
        GM_ADDR at = workspace + AscendC::GetBlockIdx() * tiling.workspaceBytes;
        const int32_t width = ratio_ * dim_, scores = ratio_ * columns_;
        GM_ADDR prepared = at;
        at += 2 * NewToken::Bytes(ratio_, dim_);
        weights_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(at), scores);
        at += CeilTo(scores, FRACTAL) * sizeof(half);
        scores_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(at), 2 * scores);
        at += 2 * scores * sizeof(float);
        results_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(at), 4 * width);

        pipe->InitBuffer(scoreQueue_, 1, scores * sizeof(float));
        pipe->InitBuffer(weightQueue_, 1, weightRows_ * columns_ * sizeof(half));
        pipe->InitBuffer(resultQueue_, 1, 2 * width * sizeof(float));
        pipe->InitBuffer(outQueue_, 1, width * sizeof(half));
        pipe->InitBuffer(sumBuffer_, width * sizeof(float));
        pipe->InitBuffer(softmaxBuffer_, WideSoftmax::Bytes(ratio_, columns_));
        pipe->InitBuffer(maskBuffer_, FRACTAL * sizeof(float));
        sum_ = sumBuffer_.Get<float>();
        mask_ = maskBuffer_.Get<float>();
        softmax_.Init(softmaxBuffer_.Get<float>(), ratio_, columns_, pipe);
        token_.Init(qkv, cos, sin, prepared, kCache_, vCache_, s, pipe);
#if EDGELLAMA_MATMUL_BORROWS_UB
        pipe->InitBuffer(matmulBuffer_, tiling.matmulBytes);
#endif
        steps_.Init(start, length, tiling);
    }

    __aicore__ inline void Process() {
        WriteEmptyItems();
        DecodeStep now = steps_.First(), before = DecodeStep();
        if (!now.valid) return;
        DecodeStep next = steps_.After(now);
        token_.Prepare(now);
        if (next.valid && next.opens) token_.Prepare(next);
        BeforeProduct();
        MultiplyKeys(now);
        while (now.valid) {
            AscendC::PipeBarrier<PIPE_ALL>();  // the scores of this step and the results of the last one are complete
            LoadScores(now);
            if (before.valid) LoadResults(before);
            if (next.valid) MultiplyKeys(next);
            if (before.valid) Accumulate(before);
            if (now.opens) Open();
            Weigh(now);
            BeforeProduct();
            MultiplyValues(now);
            const DecodeStep later = next.valid ? steps_.After(next) : DecodeStep();
            if (later.valid && later.opens) token_.Prepare(later);
            before = now;
            now = next;
            next = later;
        }
        AscendC::PipeBarrier<PIPE_ALL>();
        LoadResults(before);
        Accumulate(before);
    }

private:
    // Items without any position: the result is 0, or a record of no positions.
    __aicore__ inline void WriteEmptyItems() {
        for (int32_t item = steps_.FirstItem(); item < steps_.Items(); item = steps_.NextItem(item)) {
            const float weight = steps_.EmptyWeight(item);
            if (weight < 0.0f) continue;
            Open();
            AscendC::Duplicate(softmax_.sum8, weight, ratio_ * BLOCK);
            VectorFence();
            Store(item);
        }
    }

    __aicore__ inline void Open() {
        softmax_.Reset();
        float zero = 0.0f;
        AscendC::Duplicate(sum_, zero, ratio_ * dim_);
        VectorFence();
    }

    // Lets the next product read what this core has written to global memory.
    __aicore__ inline void BeforeProduct() {
#if EDGELLAMA_SPLIT_CORES
        AscendC::PipeBarrier<PIPE_ALL>();
#else
        AscendC::TQueSync<PIPE_MTE3, PIPE_MTE2> stored;
        AscendC::TEventID event = pipe_->FetchEventID(AscendC::HardEvent::MTE3_MTE2);
        stored.SetFlag(event);
        stored.WaitFlag(event);
#endif
    }

    __aicore__ inline void MultiplyKeys(const DecodeStep& step) {
        AscendC::GlobalTensor<float> scores = scores_[step.turn * ratio_ * columns_];
        if (step.count > 0) {
            qk.SetSingleShape(ratio_, step.count, dim_);
            qk.SetTensorA(token_.Queries(step));
            qk.SetTensorB(kCache_[token_.CacheAt(step, step.from)], true);
            LendUb(qk);
            qk.IterateAll(scores);
        }
        if (step.tail > 0) {
            qk.SetSingleShape(ratio_, FRACTAL, dim_);
            qk.SetTensorA(token_.Queries(step));
            qk.SetTensorB(token_.KeyTail(step), true);
            LendUb(qk);
            qk.IterateAll(scores[step.count]);
        }
        qk.End();
    }

    __aicore__ inline void LoadScores(const DecodeStep& step) {
        const int32_t n = step.Columns(), gap = CeilTo(n, WIDE) - n;
        AscendC::LocalTensor<float> scores = scoreQueue_.AllocTensor<float>();
        AscendC::DataCopy(scores, scores_[step.turn * ratio_ * columns_],
                          AscendC::DataCopyParams(ratio_, n / BLOCK, (columns_ - n) / BLOCK, gap / BLOCK));
        scoreQueue_.EnQue(scores);
    }

    // Computes the weights of a step from its scores, and hides the columns after its last position.
    __aicore__ inline void Weigh(const DecodeStep& step) {
        const int32_t n = step.Columns(), wide = CeilTo(n, WIDE);
        AscendC::LocalTensor<float> scores = scoreQueue_.DeQue<float>();
        float masked = MASKED;
        for (int32_t r = 0; wide > n && r < ratio_; ++r) AscendC::Duplicate(scores[r * wide + n], masked, wide - n);
        if (step.tail > 0 && step.tail < FRACTAL) HideTail(scores[step.count], step.tail, wide);
        VectorFence();
        softmax_.Step(scores, wide);
        for (int32_t r = 0; r < ratio_; r += weightRows_) {
            const int32_t rows = Least(weightRows_, ratio_ - r);
            AscendC::LocalTensor<half> weights = weightQueue_.AllocTensor<half>();
            AscendC::Cast(weights, scores[r * wide], AscendC::RoundMode::CAST_NONE, static_cast<uint32_t>(rows * wide));
            weightQueue_.EnQue(weights);
            weights = weightQueue_.DeQue<half>();
            AscendC::DataCopy(weights_[r * columns_], weights,
                              AscendC::DataCopyParams(rows, n / FRACTAL, (wide - n) / FRACTAL, (columns_ - n) / FRACTAL));
            weightQueue_.FreeTensor(weights);
        }
        scoreQueue_.FreeTensor(scores);
        MulRows(sum_, sum_, softmax_.factor8, ratio_, dim_, dim_);
    }

    // Adds -1e30 to the columns of the tail without a position. Their keys are zeros, so the sums are finite.
    __aicore__ inline void HideTail(AscendC::LocalTensor<float> scores, int32_t tail, int32_t wide) {
        float masked = MASKED, zero = 0.0f;
        AscendC::Duplicate(mask_, masked, FRACTAL);
        VectorFence();
        AscendC::Duplicate(mask_, zero, tail);
        VectorFence();
        for (int32_t r = 0; r < ratio_; ++r) AscendC::Add(scores[r * wide], scores[r * wide], mask_, FRACTAL);
    }

    __aicore__ inline void MultiplyValues(const DecodeStep& step) {
        const int32_t width = ratio_ * dim_;
        AscendC::GlobalTensor<float> results = results_[step.turn * 2 * width];
        if (step.count > 0) {
            pv.SetSingleShape(ratio_, dim_, step.count);
            pv.SetTensorA(weights_);
            pv.SetTensorB(vCache_[token_.CacheAt(step, step.from)]);
            LendUb(pv);
            pv.IterateAll(results);
        }
        if (step.tail > 0) {
            pv.SetSingleShape(ratio_, dim_, FRACTAL);
            pv.SetTensorA(weights_[step.count]);
            pv.SetTensorB(token_.ValueTail(step));
            LendUb(pv);
            pv.IterateAll(results[step.count > 0 ? width : 0]);
        }
        pv.End();
    }

    __aicore__ inline void LoadResults(const DecodeStep& step) {
        const int32_t width = ratio_ * dim_;
        AscendC::LocalTensor<float> results = resultQueue_.AllocTensor<float>();
        AscendC::DataCopy(results, results_[step.turn * 2 * width], step.Results() * width);
        resultQueue_.EnQue(results);
    }

    // Adds the results of a step, and writes the item's result after its last step.
    __aicore__ inline void Accumulate(const DecodeStep& step) {
        const int32_t width = ratio_ * dim_;
        AscendC::LocalTensor<float> results = resultQueue_.DeQue<float>();
        for (int32_t i = 0; i < step.Results(); ++i) {
            AscendC::Add(sum_, sum_, results[i * width], width);
            VectorFence();
        }
        resultQueue_.FreeTensor(results);
        if (step.closes) Store(step.item);
    }

    __aicore__ inline void Store(int32_t item) {
        if (parts_ > 1) return StorePartial(item);
        DivRows(sum_, sum_, softmax_.sum8, ratio_, dim_, dim_);
        AscendC::LocalTensor<half> result = outQueue_.AllocTensor<half>();
        AscendC::Cast(result, sum_, AscendC::RoundMode::CAST_NONE, ratio_ * dim_);
        VectorFence();
        outQueue_.EnQue(result);
        result = outQueue_.DeQue<half>();
        AscendC::DataCopy(out_[static_cast<int64_t>(item) * ratio_ * dim_], result, ratio_ * dim_);
        outQueue_.FreeTensor(result);
    }

    // Writes a record of partial from where the sums are: the weighted sum [H / G, D], then the maxima and the sums of
    // the weights as row8, which follow one another.
    __aicore__ inline void StorePartial(int32_t item) {
        const int64_t at = static_cast<int64_t>(item) * record_;
        AscendC::TQueSync<PIPE_V, PIPE_MTE3> computed;
        AscendC::TEventID event = pipe_->FetchEventID(AscendC::HardEvent::V_MTE3);
        computed.SetFlag(event);
        computed.WaitFlag(event);
        AscendC::DataCopy(partial_[at], sum_, ratio_ * dim_);
        AscendC::DataCopy(partial_[at + ratio_ * dim_], softmax_.max8, 2 * ratio_ * BLOCK);
        AscendC::TQueSync<PIPE_MTE3, PIPE_V> stored;  // the next item overwrites them
        event = pipe_->FetchEventID(AscendC::HardEvent::MTE3_V);
        stored.SetFlag(event);
        stored.WaitFlag(event);
    }

    template <class M>
    __aicore__ inline void LendUb(M& matmul) {
#if EDGELLAMA_MATMUL_BORROWS_UB
        matmul.SetLocalWorkspace(matmulBuffer_.template Get<uint8_t>());
#else
        (void)matmul;
#endif
    }

    AscendC::TPipe* pipe_ = nullptr;
    int32_t dim_ = 0, ratio_ = 0, columns_ = 0, weightRows_ = 0, parts_ = 0, record_ = 0;  // record_: floats of a record
    DecodeSteps steps_;
    NewToken token_;
    WideSoftmax softmax_;

    AscendC::GlobalTensor<half> kCache_, vCache_, out_, weights_;
    AscendC::GlobalTensor<float> partial_, scores_, results_;
    AscendC::TQue<AscendC::TPosition::VECIN, 1> scoreQueue_, resultQueue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> weightQueue_, outQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuffer_, softmaxBuffer_, maskBuffer_, matmulBuffer_;
    AscendC::LocalTensor<float> sum_, mask_;
};

}  // namespace edgellama

#endif
