// Shared code of the kernels that are wrong on purpose. Each kernel has an input and an output of N floats.
#ifndef TESTS_ASCEND_WRONG_H
#define TESTS_ASCEND_WRONG_H

#include "lib/matmul_intf.h"

using namespace AscendC;

#define KERNEL(name)                                                                                          \
    extern "C" __global__ __aicore__ void name([[maybe_unused]] GM_ADDR in, [[maybe_unused]] GM_ADDR out,     \
                                               [[maybe_unused]] GM_ADDR workspace, [[maybe_unused]] GM_ADDR tiling)

using InQueue = TQue<TPosition::VECIN, 1>;
using OutQueue = TQue<TPosition::VECOUT, 1>;
using Buffer = TBuf<TPosition::VECCALC>;

constexpr int N = 256;  // floats of input and output

inline GlobalTensor<float> Global(GM_ADDR address, std::uint64_t elements = 0) {
    GlobalTensor<float> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<float*>(address), elements);
    return tensor;
}

template <pipe_t from, pipe_t to>
void Order() {
    TQueSync<from, to> sync;
    sync.SetFlag(0);
    sync.WaitFlag(0);
}

// Two buffers of N floats. The vector pipe has filled the first with ones, and a barrier follows.
struct Ones {
    Ones() {
        pipe.InitBuffer(a, N * sizeof(float));
        pipe.InitBuffer(b, N * sizeof(float));
        x = a.Get<float>();
        y = b.Get<float>();
        Duplicate(x, 1.0f, N);
        PipeBarrier<PIPE_V>();
    }
    TPipe pipe;
    Buffer a, b;
    LocalTensor<float> x, y;
};

#endif
