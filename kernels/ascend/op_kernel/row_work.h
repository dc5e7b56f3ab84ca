// Divides the tiles of a prefill among the cores, by their cost.
//
// A core gets neighbouring tiles of a head, so that it prepares each new key only once. Later tokens see more positions
// and cost more. A core takes the tiles whose middle is in its share of the total cost.
#ifndef EDGELLAMA_ROW_WORK_H
#define EDGELLAMA_ROW_WORK_H

#include "attention_tiling_data.h"
#include "vector_ops.h"

namespace edgellama {

class RowWork {
public:
    int32_t start = 0, length = 0;  // of the row that Read has read

    __aicore__ inline void Init(GM_ADDR starts, GM_ADDR lengths, const AttentionSizes& sizes, int32_t tileTokens) {
        starts_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(starts), sizes.rows);
        lengths_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(lengths), sizes.rows);
        tokens_ = sizes.tokens;
        capacity_ = sizes.capacity;
        rows_ = sizes.rows;
        groups_ = sizes.groups;
        window_ = sizes.window;
        tileTokens_ = tileTokens;
    }

    // Computes the share of a worker. Then the caller asks for each head and tile in order.
    __aicore__ inline void Divide(int64_t worker, int32_t workers) {
        int64_t total = 0;
        for (int32_t row = 0; row < rows_; ++row) {
            Read(row);
            total += HeadCost() * groups_;
        }
        workers_ = workers;
        from_ = 2 * total * worker;
        to_ = from_ + 2 * total;
    }

    // Reads a row's start and length. A row that leaves the cache counts as empty.
    __aicore__ inline void Read(int32_t row) {
        start = starts_.GetValue(row);
        length = lengths_.GetValue(row);
        if (length < 0 || start < 0 || length > tokens_ || length > capacity_ - start) length = 0;
    }

    // Whether the share may contain tiles of the next head. Ask for the tiles of that head only if it may.
    __aicore__ inline bool TakesFromHead() {
        const int64_t head = HeadCost();
        if (2 * done_ * workers_ < to_ && 2 * (done_ + head) * workers_ >= from_) return true;
        done_ += head;
        return false;
    }

    // Whether the share contains the tile at `token` of the current head.
    __aicore__ inline bool Takes(int32_t token) {
        const int64_t cost = Cost(token), middle = (2 * done_ + cost) * workers_;
        done_ += cost;
        return middle >= from_ && middle < to_;
    }

private:
    // The cost of the tile at `token`: 16 for its preparation, 1 for each 16 positions that it sees; 1 for padding.
    __aicore__ inline int64_t Cost(int32_t token) const {
        const int32_t end = Least(token + tileTokens_, length);
        if (token >= end) return 1;
        const int32_t lowest = window_ > 0 ? Most(0, start + token - window_ + 1) : 0;
        return FRACTAL + CeilDiv(start + end - lowest, FRACTAL);
    }

    // The cost of all tiles of a head of the row.
    __aicore__ inline int64_t HeadCost() const {
        int64_t cost = 0;
        for (int32_t token = 0; token < tokens_; token += tileTokens_) cost += Cost(token);
        return cost;
    }

    int32_t rows_ = 0, groups_ = 0, tokens_ = 0, capacity_ = 0, window_ = 0, tileTokens_ = 0, workers_ = 0;
    int64_t from_ = 0, to_ = 0;  // the share, in units of cost / (2 * workers)
    int64_t done_ = 0;           // cost of the tiles so far
    AscendC::GlobalTensor<int32_t> starts_, lengths_;
};

}  // namespace edgellama

#endif
