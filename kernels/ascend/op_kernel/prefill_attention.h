// The prefill kernel, a bucket of tokens per row: rotary embedding, in-place write of keys and values, causal flash
// attention (Dao et al., arXiv:2205.14135).
//
// A work item is a row, a key/value head and `tileTokens` consecutive tokens. The H / G query heads of the key/value
// head are rows of one matrix, in token-major order, so each key is read once for all of them.
//
// Every core has its own copy of the newest keys and values, the "tail", in its workspace, and reads only older
// positions from the cache. So no core reads what another core writes in this call, and the cores need no
// synchronisation. The tail starts at the last multiple of 16 up to `start`, and zeros pad it to a multiple of 16, so
// every matrix of Matmul consists of whole 16 x 16 fractals.
#ifndef EDGELLAMA_PREFILL_ATTENTION_H
#define EDGELLAMA_PREFILL_ATTENTION_H

#include "attention_tiling_data.h"
#include "causal_mask.h"
#include "cube_matmul.h"
#include "row_work.h"
#include "vector_ops.h"

namespace edgellama {

using MatrixA = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half>;
using MatrixKeys = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half, true>;
using MatrixValues = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, half>;
using MatrixC = AscendC::MatmulType<AscendC::TPosition::GM, CubeFormat::ND, float>;
using ScoreMatmul = CubeMatmul<MatrixA, MatrixKeys, MatrixC>;
using ValueMatmul = CubeMatmul<MatrixA, MatrixValues, MatrixC>;

class PrefillAttention {
public:
    ScoreMatmul qk;  // the kernel function registers both products before Init
    ValueMatmul pv;

    __aicore__ inline void Init(GM_ADDR qkv, GM_ADDR cos, GM_ADDR sin, GM_ADDR start, GM_ADDR length, GM_ADDR kCache,
                                GM_ADDR vCache, GM_ADDR out, GM_ADDR workspace, const PrefillTiling& tiling,
                                AscendC::TPipe* pipe) {
        const AttentionSizes& s = tiling.sizes;
        sizes_ = s;
        tileTokens_ = tiling.tileTokens;
        queries_ = tiling.queries;
        keys_ = tiling.keys;
        prepareTokens_ = tiling.prepareTokens;
        workers_ = tiling.workers;
        dim_ = s.headDim;
        ratio_ = s.heads / s.groups;
        qkvWidth_ = (s.heads + 2 * s.groups) * dim_;
        const int64_t cache = static_cast<int64_t>(s.rows) * s.groups * s.capacity * dim_;
        qkv_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(qkv));
        cos_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(cos));
        sin_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(sin));
        work_.Init(start, length, s, tileTokens_);
        kCache_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(kCache), cache);
        vCache_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(vCache), cache);
        out_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(out));

        // The workspace of this core. The size of every part is a multiple of 32 bytes.
        GM_ADDR at = workspace + AscendC::GetBlockIdx() * tiling.workspaceBytes;
        const int32_t tail = tiling.tailRows * dim_;
        kTail_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(at), tail);
        at += tail * sizeof(half);
        vTail_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(at), tail);
        at += tail * sizeof(half);
        queryMatrix_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(at), queries_ * dim_);
        at += queries_ * dim_ * sizeof(half);
        weightMatrix_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(at), queries_ * keys_);
        at += queries_ * keys_ * sizeof(half);
        scoreMatrix_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(at), queries_ * keys_);
        at += queries_ * keys_ * sizeof(float);
        resultMatrix_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(at), queries_ * dim_);

        const int32_t wide = Most(keys_, dim_), prepareRows = prepareTokens_ * ratio_;
        pipe->InitBuffer(inQueue_, 1, prepareRows * dim_ * sizeof(half));
        pipe->InitBuffer(tableQueue_, 1, prepareTokens_ * dim_ * sizeof(float));
        pipe->InitBuffer(passQueue_, 1, Most(prepareTokens_, FRACTAL) * dim_ * sizeof(half));
        pipe->InitBuffer(matrixQueue_, 1, queries_ * wide * sizeof(float));
        pipe->InitBuffer(halfQueue_, 1, queries_ * wide * sizeof(half));
        pipe->InitBuffer(sumBuffer_, queries_ * dim_ * sizeof(float));
        pipe->InitBuffer(scratchBuffer_, Most(prepareRows * (2 * dim_ + LANES), queries_ * LANES) * sizeof(float));
        pipe->InitBuffer(softmaxBuffer_, OnlineSoftmax::Bytes(queries_));
        pipe->InitBuffer(maskBuffer_, CausalMask::Bytes(queries_, keys_));
        pipe->InitBuffer(zeroBuffer_, Most(FRACTAL, ratio_) * dim_ * sizeof(half));
#if EDGELLAMA_MATMUL_BORROWS_UB
        pipe->InitBuffer(matmulBuffer_, tiling.matmulBytes);
#endif
        sum_ = sumBuffer_.Get<float>();
        scratch_ = scratchBuffer_.Get<float>();
        softmax_.Init(softmaxBuffer_.Get<float>(), queries_);
        mask_.Init(maskBuffer_.Get<float>(), queries_, keys_, ratio_, s.window, pipe);
        zeros_ = zeroBuffer_.Get<half>();
        half zero = static_cast<half>(0.0f);
        AscendC::Duplicate(zeros_, zero, Most(FRACTAL, ratio_) * dim_);
        AscendC::TQueSync<PIPE_V, PIPE_MTE3> vectorToStore;
        AscendC::TEventID event = pipe->FetchEventID(AscendC::HardEvent::V_MTE3);
        vectorToStore.SetFlag(event);
        vectorToStore.WaitFlag(event);
    }

    __aicore__ inline void Process() {
        work_.Divide(AscendC::GetBlockIdx(), workers_);
        for (row_ = 0; row_ < sizes_.rows; ++row_) {
            work_.Read(row_);
            start0_ = work_.start;
            for (group_ = 0; group_ < sizes_.groups; ++group_) {
                if (!work_.TakesFromHead()) continue;
                for (int32_t token = 0; token < sizes_.tokens; token += tileTokens_) {
                    if (work_.Takes(token)) Item(token);
                }
            }
        }
    }

private:
    // Processes tokens [token, token + tileTokens) of one row and key/value head.
    __aicore__ inline void Item(int32_t token) {
        const int32_t head = row_ * sizes_.groups + group_;
        const int32_t bucketEnd = Least(token + tileTokens_, sizes_.tokens), end = Least(bucketEnd, work_.length);
        const int32_t firstPadding = Most(token, end);
        if (token < end) {
            aligned_ = start0_ / FRACTAL * FRACTAL;
            if (head != tailHead_) BeginTail(head);
            AppendTail(token, false);
            AppendTail(end, true);
            PadTail();
            PrepareQueries(token, end - token);
            Attend(token, end - token);
            Store(token, end - token);
        }
        for (int32_t t = firstPadding; t < bucketEnd; ++t) {
            AscendC::DataCopy(out_[OutAt(t)], zeros_, ratio_ * dim_);
        }
    }

    // Starts the tail of a head with the cached positions aligned_ .. start - 1.
    __aicore__ inline void BeginTail(int32_t head) {
        tailHead_ = head;  // a step waits for its products, so nothing still reads the previous head's tail
        tailTokens_ = 0;
        const int32_t rows = start0_ - aligned_;
        if (rows > 0) {
            Pass(vTail_, vCache_[CacheAt(aligned_)], rows);
            Pass(kTail_, kCache_[CacheAt(aligned_)], rows);
        }
    }

    __aicore__ inline void Pass(AscendC::GlobalTensor<half> to, AscendC::GlobalTensor<half> from, int32_t rows) {
        AscendC::LocalTensor<half> buffer = passQueue_.AllocTensor<half>();
        AscendC::DataCopy(buffer, from, rows * dim_);
        passQueue_.EnQue(buffer);
        buffer = passQueue_.DeQue<half>();
        AscendC::DataCopy(to, buffer, rows * dim_);
        passQueue_.FreeTensor(buffer);
    }

    // Extends the tail to token `end` (exclusive) of this call. With `owned`, also writes the same bytes to the cache.
    __aicore__ inline void AppendTail(int32_t end, bool owned) {
        for (; tailTokens_ < end;) {
            const int32_t n = Least(prepareTokens_, end - tailTokens_);
            const int64_t token = (static_cast<int64_t>(row_) * sizes_.tokens + tailTokens_) * qkvWidth_;
            const int64_t tail = static_cast<int64_t>(start0_ - aligned_ + tailTokens_) * dim_;
            const int64_t cache = CacheAt(start0_ + tailTokens_);
            const AscendC::DataCopyParams strided(n, dim_ / FRACTAL, (qkvWidth_ - dim_) / FRACTAL, 0);

            AscendC::LocalTensor<half> values = passQueue_.AllocTensor<half>();
            AscendC::DataCopy(values, qkv_[token + (sizes_.heads + sizes_.groups + group_) * dim_], strided);
            passQueue_.EnQue(values);
            values = passQueue_.DeQue<half>();
            AscendC::DataCopy(vTail_[tail], values, n * dim_);
            if (owned) AscendC::DataCopy(vCache_[cache], values, n * dim_);
            passQueue_.FreeTensor(values);

            AscendC::LocalTensor<half> in = inQueue_.AllocTensor<half>();
            AscendC::DataCopy(in, qkv_[token + (sizes_.heads + group_) * dim_], strided);
            inQueue_.EnQue(in);
            LoadTables(start0_ + tailTokens_, n);
            AscendC::LocalTensor<half> keys = halfQueue_.AllocTensor<half>();
            RotateTokens(keys, n, 1, 1.0f);
            halfQueue_.EnQue(keys);
            keys = halfQueue_.DeQue<half>();
            AscendC::DataCopy(kTail_[tail], keys, n * dim_);
            if (owned) AscendC::DataCopy(kCache_[cache], keys, n * dim_);
            halfQueue_.FreeTensor(keys);
            tailTokens_ += n;
        }
    }

    // Pads the tail with zeros to a multiple of 16 rows: the keys are masked, and the values have weight zero but must
    // not be NaN. The next tile may overwrite these rows; at least one full barrier comes before it.
    __aicore__ inline void PadTail() {
        const int32_t rows = start0_ - aligned_ + tailTokens_;
        paddedTail_ = CeilTo(rows, FRACTAL);
        if (rows < paddedTail_) {
            AscendC::DataCopy(kTail_[rows * dim_], zeros_, (paddedTail_ - rows) * dim_);
            AscendC::DataCopy(vTail_[rows * dim_], zeros_, (paddedTail_ - rows) * dim_);
        }
    }

    // Writes the rotated, scaled queries to the workspace as the left matrix, padded with zeros to 16 rows.
    __aicore__ inline void PrepareQueries(int32_t token, int32_t tokens) {
        for (int32_t done = 0; done < tokens; done += prepareTokens_) {
            const int32_t n = Least(prepareTokens_, tokens - done), width = ratio_ * dim_;
            const int64_t from =
                (static_cast<int64_t>(row_) * sizes_.tokens + token + done) * qkvWidth_ + group_ * width;
            AscendC::LocalTensor<half> in = inQueue_.AllocTensor<half>();
            AscendC::DataCopy(in, qkv_[from],
                              AscendC::DataCopyParams(n, width / FRACTAL, (qkvWidth_ - width) / FRACTAL, 0));
            inQueue_.EnQue(in);
            LoadTables(start0_ + token + done, n);
            AscendC::LocalTensor<half> queries = halfQueue_.AllocTensor<half>();
            RotateTokens(queries, n, ratio_, sizes_.scale);
            halfQueue_.EnQue(queries);
            queries = halfQueue_.DeQue<half>();
            AscendC::DataCopy(queryMatrix_[done * width], queries, n * width);
            halfQueue_.FreeTensor(queries);
        }
        const int32_t rows = tokens * ratio_;
        matrixRows_ = CeilTo(rows, FRACTAL);
        if (rows < matrixRows_) {
            AscendC::DataCopy(queryMatrix_[rows * dim_], zeros_, (matrixRows_ - rows) * dim_);
        }
    }

    __aicore__ inline void LoadTables(int32_t position, int32_t tokens) {
        const int64_t from = static_cast<int64_t>(position) * (dim_ / 2);
        AscendC::LocalTensor<float> table = tableQueue_.AllocTensor<float>();
        AscendC::DataCopy(table, cos_[from], tokens * dim_ / 2);
        AscendC::DataCopy(table[tokens * dim_ / 2], sin_[from], tokens * dim_ / 2);
        tableQueue_.EnQue(table);
    }

    // result = scale * rotated input, for `tokens` tokens with `heads` heads each. Takes the input from inQueue_ and
    // the tables from tableQueue_.
    __aicore__ inline void RotateTokens(AscendC::LocalTensor<half> result, int32_t tokens, int32_t heads, float scale) {
        const int32_t rows = tokens * heads, width = heads * dim_;
        AscendC::LocalTensor<half> in = inQueue_.DeQue<half>();
        AscendC::LocalTensor<float> cos = tableQueue_.DeQue<float>();
        AscendC::LocalTensor<float> sin = cos[tokens * dim_ / 2];
        AscendC::LocalTensor<float> x = scratch_, y = scratch_[rows * dim_], temp = scratch_[2 * rows * dim_];
        AscendC::Cast(x, in, AscendC::RoundMode::CAST_NONE, rows * dim_);
        VectorFence();
        inQueue_.FreeTensor(in);
        if (width / BLOCK <= 255) {  // the repeat stride can reach the next token: one call for all tokens of a head
            for (int32_t h = 0; h < heads; ++h) {
                Rotate(y[h * dim_], x[h * dim_], cos, sin, temp, tokens, dim_, width, dim_ / 2);
            }
        } else {
            for (int32_t t = 0; t < tokens; ++t) {
                Rotate(y[t * width], x[t * width], cos[t * dim_ / 2], sin[t * dim_ / 2], temp, heads, dim_, dim_, 0);
            }
        }
        tableQueue_.FreeTensor(cos);
        AscendC::Muls(y, y, scale, rows * dim_);
        VectorFence();
        AscendC::Cast(result, y, AscendC::RoundMode::CAST_NONE, rows * dim_);
    }

    __aicore__ inline void Attend(int32_t token, int32_t tokens) {
        softmax_.Reset(matrixRows_);
        float zero = 0.0f;
        AscendC::Duplicate(sum_, zero, matrixRows_ * dim_);
        VectorFence();
        AscendC::PipeBarrier<PIPE_ALL>();  // queries and tail must be in global memory before the cube reads them
        const int32_t first = start0_ + token;  // position of the tile's first token
        int32_t lowest = 0;  // first position that a token of the tile sees, rounded down to a multiple of 16
        if (sizes_.window > 0) lowest = Most(0, first - sizes_.window + 1) / FRACTAL * FRACTAL;
        for (int32_t at = lowest; at < aligned_; at += keys_) {
            Step(kCache_[CacheAt(at)], vCache_[CacheAt(at)], Least(keys_, aligned_ - at), at, first, tokens);
        }
        for (int32_t at = Most(lowest, aligned_); at < aligned_ + paddedTail_; at += keys_) {
            const int32_t offset = (at - aligned_) * dim_;
            Step(kTail_[offset], vTail_[offset], Least(keys_, aligned_ + paddedTail_ - at), at, first, tokens);
        }
    }

    // One step of flash attention over the keys of the cache positions at .. at + n - 1.
    __aicore__ inline void Step(AscendC::GlobalTensor<half> keys, AscendC::GlobalTensor<half> values, int32_t n,
                                int32_t at, int32_t first, int32_t tokens) {
        // The scores of the step before are read: a barrier of that step followed.
        qk.SetSingleShape(matrixRows_, n, dim_);
        qk.SetTensorA(queryMatrix_);
        qk.SetTensorB(keys, true);
        LendUb(qk);
        qk.IterateAll(scoreMatrix_);
        qk.End();
        ProductEnds();

        AscendC::LocalTensor<float> scores = matrixQueue_.AllocTensor<float>();
        const int32_t gap = keys_ - n;
        AscendC::DataCopy(scores, scoreMatrix_,
                          AscendC::DataCopyParams(matrixRows_, n / BLOCK, gap / BLOCK, gap / BLOCK));
        matrixQueue_.EnQue(scores);
        scores = matrixQueue_.DeQue<float>();
        mask_.Apply(scores, scratch_, matrixRows_, n, at, first, tokens);
        softmax_.Step(scores, matrixRows_, n, keys_);
        AscendC::LocalTensor<half> weights = halfQueue_.AllocTensor<half>();
        for (int32_t c = 0; c < n; c += LANES) {
            AscendC::Cast(weights[c], scores[c], AscendC::RoundMode::CAST_NONE,
                          static_cast<uint64_t>(Least(LANES, n - c)), matrixRows_,
                          UnaryRepeatParams(1, 1, keys_ / FRACTAL, keys_ / BLOCK));
        }
        matrixQueue_.FreeTensor(scores);
        halfQueue_.EnQue(weights);
        weights = halfQueue_.DeQue<half>();
        AscendC::DataCopy(weightMatrix_, weights,
                          AscendC::DataCopyParams(matrixRows_, n / FRACTAL, gap / FRACTAL, gap / FRACTAL));
        halfQueue_.FreeTensor(weights);

        AscendC::PipeBarrier<PIPE_ALL>();  // the weights must be in global memory before the cube reads them
        MulRows(sum_, sum_, softmax_.factor8, matrixRows_, dim_, dim_);  // while the cube multiplies
        pv.SetSingleShape(matrixRows_, dim_, n);
        pv.SetTensorA(weightMatrix_);
        pv.SetTensorB(values);
        LendUb(pv);
        pv.IterateAll(resultMatrix_);
        pv.End();
        ProductEnds();

        AscendC::LocalTensor<float> result = matrixQueue_.AllocTensor<float>();
        AscendC::DataCopy(result, resultMatrix_, matrixRows_ * dim_);
        matrixQueue_.EnQue(result);
        result = matrixQueue_.DeQue<float>();
        AscendC::Add(sum_, sum_, result, matrixRows_ * dim_);
        VectorFence();
        matrixQueue_.FreeTensor(result);
    }

    // Waits until a product's result is in global memory. With split cores, IterateAll has waited.
    __aicore__ inline void ProductEnds() {
#if !EDGELLAMA_SPLIT_CORES
        AscendC::PipeBarrier<PIPE_ALL>();
#endif
    }

    __aicore__ inline void Store(int32_t token, int32_t tokens) {
        DivRows(sum_, sum_, softmax_.sum8, matrixRows_, dim_, dim_);
        const int32_t width = ratio_ * dim_;
        AscendC::LocalTensor<half> result = halfQueue_.AllocTensor<half>();
        AscendC::Cast(result, sum_, AscendC::RoundMode::CAST_NONE, tokens * width);
        halfQueue_.EnQue(result);
        result = halfQueue_.DeQue<half>();
        AscendC::DataCopy(out_[OutAt(token)], result,
                          AscendC::DataCopyParams(tokens, width / FRACTAL, 0,
                                                  (sizes_.heads * dim_ - width) / FRACTAL));
        halfQueue_.FreeTensor(result);
    }

    template <class M>
    __aicore__ inline void LendUb(M& matmul) {
#if EDGELLAMA_MATMUL_BORROWS_UB
        matmul.SetLocalWorkspace(matmulBuffer_.template Get<uint8_t>());
#else
        (void)matmul;
#endif
    }

    // Offset of a position of the current head in a cache, in elements.
    __aicore__ inline int64_t CacheAt(int32_t position) const {
        return (static_cast<int64_t>(row_ * sizes_.groups + group_) * sizes_.capacity + position) * dim_;
    }
    // Offset of a token of the current heads in out, in elements.
    __aicore__ inline int64_t OutAt(int32_t token) const {
        return ((static_cast<int64_t>(row_) * sizes_.tokens + token) * sizes_.heads + group_ * ratio_) * dim_;
    }

    AttentionSizes sizes_;
    int32_t tileTokens_ = 0, queries_ = 0, keys_ = 0, prepareTokens_ = 0, workers_ = 0;
    int32_t dim_ = 0, ratio_ = 0, qkvWidth_ = 0;
    int32_t row_ = 0, group_ = 0, start0_ = 0;
    int32_t aligned_ = 0;      // the tail's first position: the last multiple of 16 up to start
    int32_t tailHead_ = -1, tailTokens_ = 0, paddedTail_ = 0;
    int32_t matrixRows_ = 0;   // queries of this tile, rounded up to a multiple of 16

    AscendC::GlobalTensor<half> qkv_, kCache_, vCache_, out_, kTail_, vTail_, queryMatrix_, weightMatrix_;
    AscendC::GlobalTensor<float> cos_, sin_, scoreMatrix_, resultMatrix_;

    AscendC::TQue<AscendC::TPosition::VECIN, 1> inQueue_, tableQueue_, matrixQueue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> halfQueue_;
    AscendC::TQueBind<AscendC::TPosition::VECIN, AscendC::TPosition::VECOUT, 1> passQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> sumBuffer_, scratchBuffer_, softmaxBuffer_, maskBuffer_, zeroBuffer_,
        matmulBuffer_;
    AscendC::LocalTensor<float> sum_, scratch_;
    AscendC::LocalTensor<half> zeros_;
    OnlineSoftmax softmax_;
    CausalMask mask_;
    RowWork work_;
};

}  // namespace edgellama

#endif
