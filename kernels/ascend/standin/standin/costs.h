// What the instructions of a kernel cost, in cycles: the times of a performance model. The stand-in's own speed says
// nothing about a chip. Every cost has two ends, because public sources bound it and do not state it
// (kernels/ascend/costs.py).
#ifndef EDGELLAMA_STANDIN_COSTS_H
#define EDGELLAMA_STANDIN_COSTS_H

#include <algorithm>
#include <array>

namespace standin {

constexpr int kEnds = 2;  // 0: the optimistic end of every cost, 1: the pessimistic end
using Ends = std::array<double, kEnds>;

// costs.py has the same names in the same order (COSTS). "_byte" and "_fractal": cycles for one of them.
enum Cost {
    kDispatch,           // an instruction, on the scalar unit, which dispatches all of them
    kVectorInstruction, kVectorRepeat, kVectorLatency,  // latency: from the last repeat to a usable result
    kFullBarrier,        // PipeBarrier<PIPE_ALL>, besides the wait
    kCopyInstruction, kCopyBurst, kLoadByte, kStoreByte,
    kMemoryLatency,      // of global memory
    kProductMessage,     // of a product on another core: the request and the answer
    kCubeFractal, kOperandByte, kRightByte, kResultByte,  // of Matmul: global memory to L1, L1 to L0B, L0C to outside
    kCosts
};

class Costs {
public:
    // values: kCosts pairs (low, high). Null: everything takes no time.
    void Read(const double* values) {
        for (int c = 0; c < kCosts; ++c) {
            for (int e = 0; e < kEnds; ++e) values_[c][e] = values == nullptr ? 0.0 : values[c * kEnds + e];
        }
    }
    const Ends& operator[](Cost cost) const { return values_[cost]; }
    // The sum of `count` times each cost.
    template <class... Rest>
    Ends Of(Cost cost, double count, Rest... rest) const {
        Ends sum = Scaled(cost, count);
        if constexpr (sizeof...(rest) > 0) {
            const Ends more = Of(rest...);
            for (int e = 0; e < kEnds; ++e) sum[e] += more[e];
        }
        return sum;
    }

private:
    Ends Scaled(Cost cost, double count) const {
        return {values_[cost][0] * count, values_[cost][1] * count};
    }
    std::array<Ends, kCosts> values_{};
};

}  // namespace standin

#endif
