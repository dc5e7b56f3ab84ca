// The decode kernel, one token per row: rotary embedding, in-place write of the new key and value, attention over the
// cache.
//
// A work item is a row, a key/value head with its H / G query heads, and a part of the cache positions. The online
// softmax of the first part starts with the new token, from local memory. The earlier cache positions follow in tiles
// of `keys` positions, so the kernel reads nothing that it writes. With one part, the kernel writes the result. With
// more parts (SplitAttention), each item writes a record to `partial`, and JoinAttention, the next operator of the
// graph, joins the records of a head. So cores that share a head do not wait for each other.
#ifndef EDGELLAMA_DECODE_ATTENTION_H
#define EDGELLAMA_DECODE_ATTENTION_H

#include "attention_tiling_data.h"
#include "chip.h"
#include "vector_ops.h"

namespace edgellama {

class DecodeAttention {
public:
    __aicore__ inline void Init(GM_ADDR qkv, GM_ADDR cos, GM_ADDR sin, GM_ADDR start, GM_ADDR length, GM_ADDR kCache,
                                GM_ADDR vCache, GM_ADDR out, GM_ADDR partial, const DecodeTiling& tiling,
                                AscendC::TPipe* pipe) {
        t_ = tiling;
        pipe_ = pipe;
        dim_ = tiling.sizes.headDim;
        ratio_ = tiling.sizes.heads / tiling.sizes.groups;
        record_ = ratio_ * (dim_ + 2 * BLOCK);
        const int64_t cache = static_cast<int64_t>(tiling.sizes.rows) * tiling.sizes.groups * tiling.sizes.capacity;
        qkv_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(qkv));
        cos_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(cos));
        sin_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(sin));
        start_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(start), tiling.sizes.rows);
        length_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(length), tiling.sizes.rows);
        kCache_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(kCache), cache * dim_);
        vCache_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(vCache), cache * dim_);
        out_.SetGlobalBuffer(reinterpret_cast<__gm__ half*>(out));

        pipe->InitBuffer(inQueue_, 1, (ratio_ + 2) * dim_ * sizeof(half));
        pipe->InitBuffer(tableQueue_, 1, dim_ * sizeof(float));
        pipe->InitBuffer(keyQueue_, 2, tiling.keys * dim_ * sizeof(half));
        pipe->InitBuffer(valueQueue_, 2, tiling.keys * dim_ * sizeof(half));
        pipe->InitBuffer(newQueue_, 1, 2 * dim_ * sizeof(half));
        pipe->InitBuffer(outQueue_, 1, ratio_ * dim_ * sizeof(half));
        pipe->InitBuffer(queryBuffer_, ratio_ * dim_ * sizeof(float));
        pipe->InitBuffer(sumBuffer_, ratio_ * dim_ * sizeof(float));
        pipe->InitBuffer(newBuffer_, 2 * dim_ * sizeof(float));
        pipe->InitBuffer(tileBuffer_, TileFloats() * sizeof(float));
        pipe->InitBuffer(productBuffer_, TileFloats() * sizeof(float));
        pipe->InitBuffer(scoreBuffer_, ratio_ * LANES * sizeof(float));
        pipe->InitBuffer(softmaxBuffer_, OnlineSoftmax::Bytes(ratio_));
        pipe->InitBuffer(weightBuffer_, 2 * tiling.keys * BLOCK * sizeof(float));
        if (tiling.parts > 1) partial_.SetGlobalBuffer(reinterpret_cast<__gm__ float*>(partial));

        query_ = queryBuffer_.Get<float>();
        sum_ = sumBuffer_.Get<float>();
        newKv_ = newBuffer_.Get<float>();
        tile_ = tileBuffer_.Get<float>();
        product_ = productBuffer_.Get<float>();
        scores_ = scoreBuffer_.Get<float>();
        softmax_.Init(softmaxBuffer_.Get<float>(), ratio_);
        weights8_ = weightBuffer_.Get<float>(tiling.keys * BLOCK);
        AscendC::LocalTensor<int32_t> table =
            weightBuffer_.GetWithOffset<int32_t>(tiling.keys * BLOCK, tiling.keys * BLOCK * sizeof(float));
        Ramp(table, static_cast<int32_t>(0), BLOCK, static_cast<int32_t>(sizeof(float)), tiling.keys * BLOCK);
        weightOfKey_ = table.ReinterpretCast<uint32_t>();
    }

    __aicore__ inline void Process() {
        const int32_t worker = static_cast<int32_t>(AscendC::GetBlockIdx());
        const int32_t items = t_.sizes.rows * t_.sizes.groups * t_.parts;
        for (int32_t item = worker; item < items; item += t_.workers) {
            const int32_t part = item % t_.parts;
            if (Begin(item / t_.parts)) {
                const int32_t share = CeilTo(CeilDiv(start0_ - first_, t_.parts), FRACTAL);
                const int32_t from = Least(first_ + part * share, start0_), to = Least(from + share, start0_);
                if (part == 0 || from < to) {
                    Attend(from, to, part == 0);
                } else {
                    Clear(0.0f);  // a short cache has fewer parts
                }
            } else {
                Clear(part == 0 ? 1.0f : 0.0f);  // an empty row: the result is 0 / 1
            }
            if (t_.parts == 1) {
                Store();
            } else {
                StorePartial(item);
            }
        }
    }

private:
    // Size of tile_ and product_ in floats: for a tile of keys, or for a group's heads during the rotary embedding.
    __aicore__ inline int32_t TileFloats() const { return Most(t_.keys, ratio_) * Most(dim_, LANES); }

    // Selects a row and a key/value head, and reads the row's start and length. Returns false for an empty row or an
    // invalid start.
    __aicore__ inline bool Begin(int32_t head) {
        row_ = head / t_.sizes.groups;
        group_ = head % t_.sizes.groups;
        start0_ = start_.GetValue(row_);
        const int32_t length = length_.GetValue(row_);
        first_ = t_.sizes.window > 0 ? Most(0, start0_ + 1 - t_.sizes.window) : 0;
        return length > 0 && start0_ >= 0 && start0_ < t_.sizes.capacity;
    }

    // Sets the result to that of no positions, with `sum` as the sum of the weights.
    __aicore__ inline void Clear(float sum) {
        softmax_.Reset(ratio_);
        float zero = 0.0f;
        AscendC::Duplicate(sum_, zero, ratio_ * dim_);
        AscendC::Duplicate(softmax_.sum8, sum, ratio_ * BLOCK);
        VectorFence();
    }

    // Accumulates the attention over the cache positions from .. to - 1; the leading part adds the new token.
    __aicore__ inline void Attend(int32_t from, int32_t to, bool leads) {
        Prepare(leads);
        if (from < to) Load(from, Least(t_.keys, to - from));
        for (int32_t at = from; at < to; at += t_.keys) {
            const int32_t n = Least(t_.keys, to - at);
            AscendC::LocalTensor<half> keys = keyQueue_.DeQue<half>();
            AscendC::LocalTensor<half> values = valueQueue_.DeQue<half>();
            if (at + n < to) Load(at + n, Least(t_.keys, to - at - n));
            Scores(keys, n);
            softmax_.Step(scores_, ratio_, n, LANES);
            MulRows(sum_, sum_, softmax_.factor8, ratio_, dim_, dim_);
            AddValues(values, n);
        }
    }

    __aicore__ inline void Load(int32_t at, int32_t n) {
        const int64_t offset = CacheAt(at);
        AscendC::LocalTensor<half> keys = keyQueue_.AllocTensor<half>();
        AscendC::DataCopy(keys, kCache_[offset], n * dim_);
        keyQueue_.EnQue(keys);
        AscendC::LocalTensor<half> values = valueQueue_.AllocTensor<half>();
        AscendC::DataCopy(values, vCache_[offset], n * dim_);
        valueQueue_.EnQue(values);
    }

    __aicore__ inline void Prepare(bool leads) {
        const AttentionSizes& s = t_.sizes;
        const int64_t row = static_cast<int64_t>(row_) * (s.heads + 2 * s.groups) * dim_;
        AscendC::LocalTensor<half> in = inQueue_.AllocTensor<half>();
        AscendC::DataCopy(in, qkv_[row + group_ * ratio_ * dim_], ratio_ * dim_);
        AscendC::DataCopy(in[ratio_ * dim_], qkv_[row + (s.heads + group_) * dim_], dim_);
        AscendC::DataCopy(in[(ratio_ + 1) * dim_], qkv_[row + (s.heads + s.groups + group_) * dim_], dim_);
        inQueue_.EnQue(in);
        AscendC::LocalTensor<float> table = tableQueue_.AllocTensor<float>();
        AscendC::DataCopy(table, cos_[static_cast<int64_t>(start0_) * (dim_ / 2)], dim_ / 2);
        AscendC::DataCopy(table[dim_ / 2], sin_[static_cast<int64_t>(start0_) * (dim_ / 2)], dim_ / 2);
        tableQueue_.EnQue(table);

        in = inQueue_.DeQue<half>();
        table = tableQueue_.DeQue<float>();
        AscendC::LocalTensor<float> cos = table, sin = table[dim_ / 2];
        AscendC::Cast(tile_, in, AscendC::RoundMode::CAST_NONE, ratio_ * dim_);
        VectorFence();
        Rotate(query_, tile_, cos, sin, product_, ratio_, dim_, dim_, 0);
        float scale = s.scale;
        AscendC::Muls(query_, query_, scale, ratio_ * dim_);
        VectorFence();
        if (leads) {
            StartWithNewToken(in, cos, sin);
        } else {
            Clear(0.0f);
        }
        inQueue_.FreeTensor(in);
        tableQueue_.FreeTensor(table);
    }

    // Rounds the new key to float16, as in the cache; writes it and the new value; starts the softmax with this token:
    // the maximum is its score, its weight is 1.
    __aicore__ inline void StartWithNewToken(AscendC::LocalTensor<half> in, AscendC::LocalTensor<float> cos,
                                             AscendC::LocalTensor<float> sin) {
        AscendC::LocalTensor<float> key = newKv_, value = newKv_[dim_];
        AscendC::Cast(tile_, in[ratio_ * dim_], AscendC::RoundMode::CAST_NONE, dim_);
        VectorFence();
        Rotate(key, tile_, cos, sin, product_, 1, dim_, dim_, 0);
        AscendC::LocalTensor<half> rounded = newQueue_.AllocTensor<half>();
        AscendC::Cast(rounded, key, AscendC::RoundMode::CAST_NONE, dim_);
        AscendC::Cast(value, in[(ratio_ + 1) * dim_], AscendC::RoundMode::CAST_NONE, dim_);
        VectorFence();
        AscendC::Cast(rounded[dim_], value, AscendC::RoundMode::CAST_NONE, dim_);
        AscendC::Cast(key, rounded, AscendC::RoundMode::CAST_NONE, dim_);
        VectorFence();
        newQueue_.EnQue(rounded);
        rounded = newQueue_.DeQue<half>();
        const int64_t at = CacheAt(start0_);
        AscendC::DataCopy(kCache_[at], rounded, dim_);
        AscendC::DataCopy(vCache_[at], rounded[dim_], dim_);
        newQueue_.FreeTensor(rounded);

        Dot(product_, query_, key, ratio_);  // the query heads are the rows, the new key is the vector
        softmax_.SumRows(softmax_.max8, product_, ratio_, Least(LANES, dim_), dim_);
        float one = 1.0f, zero = 0.0f;
        AscendC::Duplicate(softmax_.sum8, one, ratio_ * BLOCK);
        for (int32_t r = 0; r < ratio_; ++r) AscendC::Adds(sum_[r * dim_], value, zero, dim_);
        VectorFence();
    }

    // product[row, 0:64] = partial sums of matrix[row, :] * vector. The caller sums the first min(64, D) of them.
    __aicore__ inline void Dot(AscendC::LocalTensor<float> product, AscendC::LocalTensor<float> matrix,
                               AscendC::LocalTensor<float> vector, int32_t rows) {
        const BinaryRepeatParams params(1, 1, 1, dim_ / BLOCK, dim_ / BLOCK, 0);
        AscendC::Mul(product, matrix, vector, static_cast<uint64_t>(Least(LANES, dim_)), rows, params);
        VectorFence();
        for (int32_t c = LANES; c < dim_; c += LANES) {
            AscendC::MulAddDst(product, matrix[c], vector[c], static_cast<uint64_t>(Least(LANES, dim_ - c)), rows,
                               params);
            VectorFence();
        }
    }

    // scores[r, j] = (query head r) . (key j), for n keys.
    __aicore__ inline void Scores(AscendC::LocalTensor<half> keys, int32_t n) {
        AscendC::Cast(tile_, keys, AscendC::RoundMode::CAST_NONE, n * dim_);
        VectorFence();
        keyQueue_.FreeTensor(keys);
        for (int32_t r = 0; r < ratio_; ++r) {
            Dot(product_, tile_, query_[r * dim_], n);
            AscendC::WholeReduceSum(scores_[r * LANES], product_, Least(LANES, dim_), n, 1, 1, dim_ / BLOCK);
            VectorFence();
        }
    }

    // sum[r, :] += weight[r, j] * value[j, :], summed over n keys.
    __aicore__ inline void AddValues(AscendC::LocalTensor<half> values, int32_t n) {
        AscendC::Cast(tile_, values, AscendC::RoundMode::CAST_NONE, n * dim_);
        VectorFence();
        valueQueue_.FreeTensor(values);
        for (int32_t r = 0; r < ratio_; ++r) {
            AscendC::Gather(weights8_, scores_, weightOfKey_, static_cast<uint32_t>(r * LANES * sizeof(float)),
                            n * BLOCK);
            VectorFence();
            MulRows(product_, tile_, weights8_, n, dim_, dim_);
            for (int32_t rows = n; rows > 1;) {  // adds the second half of the rows to the first half
                const int32_t kept = (rows + 1) / 2;
                AscendC::Add(product_, product_, product_[kept * dim_], (rows - kept) * dim_);
                VectorFence();
                rows = kept;
            }
            AscendC::Add(sum_[r * dim_], sum_[r * dim_], product_, dim_);
            VectorFence();
        }
    }

    __aicore__ inline void Store() {
        DivRows(sum_, sum_, softmax_.sum8, ratio_, dim_, dim_);
        AscendC::LocalTensor<half> result = outQueue_.AllocTensor<half>();
        AscendC::Cast(result, sum_, AscendC::RoundMode::CAST_NONE, ratio_ * dim_);
        VectorFence();
        outQueue_.EnQue(result);
        result = outQueue_.DeQue<half>();
        const int64_t at = (static_cast<int64_t>(row_) * t_.sizes.heads + group_ * ratio_) * dim_;
        AscendC::DataCopy(out_[at], result, ratio_ * dim_);
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

    // Offset of a position of the current head in a cache, in elements.
    __aicore__ inline int64_t CacheAt(int32_t position) const {
        return (static_cast<int64_t>(row_ * t_.sizes.groups + group_) * t_.sizes.capacity + position) * dim_;
    }

    DecodeTiling t_;
    AscendC::TPipe* pipe_ = nullptr;
    int32_t dim_ = 0, ratio_ = 0, record_ = 0;  // D, H / G, size of a record in floats
    int32_t row_ = 0, group_ = 0, start0_ = 0, first_ = 0;

    AscendC::GlobalTensor<half> qkv_, kCache_, vCache_, out_;
    AscendC::GlobalTensor<float> cos_, sin_, partial_;
    AscendC::GlobalTensor<int32_t> start_, length_;

    AscendC::TQue<AscendC::TPosition::VECIN, 1> inQueue_, tableQueue_, keyQueue_, valueQueue_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> newQueue_, outQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> queryBuffer_, sumBuffer_, newBuffer_, tileBuffer_, productBuffer_,
        scoreBuffer_, softmaxBuffer_, weightBuffer_;
    AscendC::LocalTensor<float> query_, sum_, newKv_, tile_, product_, scores_, weights8_;
    AscendC::LocalTensor<uint32_t> weightOfKey_;
    OnlineSoftmax softmax_;
};

}  // namespace edgellama

#endif
