// The steps of the decode kernel: which positions of which item each of them takes.
#ifndef EDGELLAMA_DECODE_STEPS_H
#define EDGELLAMA_DECODE_STEPS_H

#include "attention_tiling_data.h"
#include "vector_ops.h"

namespace edgellama {

struct DecodeStep {
    bool valid = false;
    bool opens = false, closes = false;  // the first and the last step of its item
    bool leads = false;                  // the item has the new token
    int32_t item = 0, row = 0, group = 0;
    int32_t start = 0;       // position of the row's new token
    int32_t from = 0, count = 0;  // positions of the cache, whole groups of 16
    int32_t end = 0;         // of the item's whole groups
    int32_t rest = 0;        // positions of the cache after these, in the tail
    int32_t tail = 0;        // rows of the tail in this step: only the last one has it
    int32_t turn = 0;        // 0 or 1, in turns by step
    int32_t itemTurn = 0;    // the same by item

    // Columns of its scores, and matrices of its results.
    __aicore__ inline int32_t Columns() const { return count + (tail > 0 ? FRACTAL : 0); }
    __aicore__ inline int32_t Results() const { return (count > 0) + (tail > 0); }
};

class DecodeSteps {
public:
    __aicore__ inline void Init(GM_ADDR start, GM_ADDR length, const DecodeTiling& tiling) {
        const AttentionSizes& s = tiling.sizes;
        starts_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(start), s.rows);
        lengths_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t*>(length), s.rows);
        groups_ = s.groups;
        capacity_ = s.capacity;
        window_ = s.window;
        parts_ = tiling.parts;
        workers_ = tiling.workers;
        items_ = s.rows * s.groups * tiling.parts;
        most_ = tiling.columns - FRACTAL;
    }

    __aicore__ inline int32_t Items() const { return items_; }
    __aicore__ inline int32_t FirstItem() const { return static_cast<int32_t>(AscendC::GetBlockIdx()); }
    __aicore__ inline int32_t NextItem(int32_t item) const { return item + workers_; }

    // The sum of weights of an item without positions, or -1 if it has some. 1 in an empty row, whose result is 0 / 1.
    __aicore__ inline float EmptyWeight(int32_t item) {
        const int32_t part = item % parts_;
        if (!Read(item / parts_ / groups_)) return part == 0 ? 1.0f : 0.0f;
        return part == 0 || From(part) < From(part + 1) ? -1.0f : 0.0f;
    }

    __aicore__ inline DecodeStep First() { return Open(FirstItem(), 0, 0); }

    // The step that follows: of the same item, or the first one of the next item with positions.
    __aicore__ inline DecodeStep After(const DecodeStep& step) {
        if (step.closes) return Open(NextItem(step.item), 1 - step.turn, 1 - step.itemTurn);
        DecodeStep next = step;
        next.opens = false;
        next.from = step.from + step.count;
        next.turn = 1 - step.turn;
        Take(&next);
        return next;
    }

private:
    __aicore__ inline DecodeStep Open(int32_t item, int32_t turn, int32_t itemTurn) {
        DecodeStep step;
        for (; item < items_; item = NextItem(item)) {
            if (EmptyWeight(item) < 0.0f) break;
        }
        if (item >= items_) return step;
        const int32_t part = item % parts_;
        step.valid = step.opens = true;
        step.leads = part == 0;
        step.item = item;
        step.row = row_;
        step.group = item / parts_ % groups_;
        step.start = start_;
        step.from = From(part);
        step.end = step.from + (From(part + 1) - step.from) / FRACTAL * FRACTAL;
        step.rest = From(part + 1) - step.end;
        step.turn = turn;
        step.itemTurn = itemTurn;
        Take(&step);
        return step;
    }

    // Sets the positions of a step: an even share of those that are left.
    __aicore__ inline void Take(DecodeStep* step) const {
        const int32_t left = step->end - step->from, steps = Most(1, CeilDiv(left, most_));
        step->count = Least(left, CeilTo(CeilDiv(left, steps), FRACTAL));
        step->closes = step->count == left;
        step->tail = step->closes ? step->rest + (step->leads ? 1 : 0) : 0;
    }

    // First position of a part of the row.
    __aicore__ inline int32_t From(int32_t part) const {
        const int32_t first = window_ > 0 ? Most(0, start_ + 1 - window_) : 0;
        const int32_t share = CeilTo(CeilDiv(start_ - first, parts_), FRACTAL);
        return Least(first + part * share, start_);
    }

    // Reads a row's start and length. Returns false for an empty row or an invalid start.
    __aicore__ inline bool Read(int32_t row) {
        if (row != row_) {
            row_ = row;
            start_ = starts_.GetValue(row);
            filled_ = lengths_.GetValue(row) > 0 && start_ >= 0 && start_ < capacity_;
        }
        return filled_;
    }

    AscendC::GlobalTensor<int32_t> starts_, lengths_;
    int32_t groups_ = 0, capacity_ = 0, window_ = 0, parts_ = 0, workers_ = 0, items_ = 0;
    int32_t most_ = 0;  // positions of a step
    int32_t row_ = -1, start_ = 0;
    bool filled_ = false;
};

}  // namespace edgellama

#endif
