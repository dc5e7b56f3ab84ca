// Kernels with errors of bounds, alignment, capacity, ranges and overlap, and reads of uninitialised memory.
#include "wrong.h"

// A correct kernel for comparison: out = in + 1. No chip may report an error.
KERNEL(right) {
    GlobalTensor<float> x = Global(in, N), y = Global(out, N);
    TPipe pipe;
    InQueue inQueue;
    OutQueue outQueue;
    pipe.InitBuffer(inQueue, 2, N / 4 * sizeof(float));
    pipe.InitBuffer(outQueue, 2, N / 4 * sizeof(float));
    for (int i = 0; i < N; i += N / 4) {
        LocalTensor<float> a = inQueue.AllocTensor<float>();
        DataCopy(a, x[i], N / 4);
        inQueue.EnQue(a);
        a = inQueue.DeQue<float>();
        LocalTensor<float> b = outQueue.AllocTensor<float>();
        Adds(b, a, 1.0f, N / 4);
        outQueue.EnQue(b);
        inQueue.FreeTensor(a);
        b = outQueue.DeQue<float>();
        DataCopy(y[i], b, N / 4);
        outQueue.FreeTensor(b);
    }
}

KERNEL(local_write_past_the_end) {
    Ones k;
    Duplicate(k.y, 1.0f, N + 8);
}

KERNEL(local_read_past_the_end) {
    Ones k;
    WholeReduceSum(k.y, k.x, 64, 5, 1, 1, 8);
}

KERNEL(gather_past_the_end) {
    Ones k;
    Buffer table;
    k.pipe.InitBuffer(table, 32);
    LocalTensor<std::int32_t> offsets = table.Get<std::int32_t>();
    Duplicate(offsets, static_cast<std::int32_t>(N * sizeof(float)), 8);
    PipeBarrier<PIPE_V>();
    Gather(k.y, k.x, offsets.ReinterpretCast<std::uint32_t>(), 0, 8);
}

KERNEL(gather_between_elements) {
    Ones k;
    Buffer table;
    k.pipe.InitBuffer(table, 32);
    LocalTensor<std::int32_t> offsets = table.Get<std::int32_t>();
    Duplicate(offsets, 6, 8);
    PipeBarrier<PIPE_V>();
    Gather(k.y, k.x, offsets.ReinterpretCast<std::uint32_t>(), 0, 8);
}

KERNEL(local_index_past_the_end) {
    Ones k;
    Adds(k.y, k.x[N + 1], 1.0f, 8);
}

KERNEL(global_read_past_the_end) {
    Ones k;
    DataCopy(k.y, Global(in, N - 8), N);
}

KERNEL(global_write_past_the_end) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(Global(out)[N - 8], k.x, 16);
}

KERNEL(global_tensor_too_long) { Global(in, N + 1); }

KERNEL(global_index_past_the_end) { Global(in, 8)[9]; }

KERNEL(global_address_of_nothing) {
    float nowhere[8];
    Global(reinterpret_cast<GM_ADDR>(nowhere), 8);
}

KERNEL(global_without_setglobalbuffer) {
    Ones k;
    GlobalTensor<float> x;
    DataCopy(k.y, x, 8);
}

KERNEL(buffer_past_its_end) {
    Ones k;
    k.a.GetWithOffset<float>(N, 32);
}

KERNEL(local_misaligned) {
    Ones k;
    Adds(k.y, k.x[4], 1.0f, 8);
}

KERNEL(copy_of_half_a_block) {
    Ones k;
    DataCopy(k.y, Global(in), 12);
}

KERNEL(global_misaligned) {
    Ones k;
    DataCopy(k.y, Global(in)[4], 8);
}

KERNEL(unified_buffer_over_192_kb) {
    TPipe pipe;
    Buffer a, b;
    pipe.InitBuffer(a, 128 * 1024);
    pipe.InitBuffer(b, 80 * 1024);
}

KERNEL(unified_buffer_over_256_kb) {
    TPipe pipe;
    InQueue queue;
    pipe.InitBuffer(queue, 2, 129 * 1024);
}

KERNEL(nine_queue_buffers) {
    TPipe pipe;
    InQueue a, b;
    pipe.InitBuffer(a, 4, 32);
    pipe.InitBuffer(b, 5, 32);
}

KERNEL(buffers_65) {
    TPipe pipe;
    Buffer buffers[65];
    for (Buffer& buffer : buffers) pipe.InitBuffer(buffer, 32);
}

KERNEL(blocks_4096) {
    Ones k;
    DataCopy(k.y, Global(in), DataCopyParams(4096, 1, 0, 0));
}

KERNEL(reduce_of_256_repeats) {
    Ones k;
    WholeReduceSum(k.y, k.x, 64, 256, 1, 1, 0);
}

KERNEL(add_nothing) {
    Ones k;
    Add(k.y, k.x, k.x, 0);
}

KERNEL(adds_nothing) {
    Ones k;
    Adds(k.y, k.x, 1.0f, 0);
}

KERNEL(duplicate_nothing) {
    Ones k;
    Duplicate(k.y, 1.0f, 0);
}

KERNEL(cast_nothing) {
    Ones k;
    Cast(k.y.ReinterpretCast<half>(), k.x, RoundMode::CAST_NONE, 0);
}

KERNEL(repeat_of_256) {
    Ones k;
    Adds(k.y, k.x, 1.0f, 64, 256, UnaryRepeatParams(1, 1, 0, 0));
}

KERNEL(mask_of_65_floats) {
    Ones k;
    Adds(k.y, k.x, 1.0f, 65, 1, UnaryRepeatParams(1, 1, 8, 8));
}

KERNEL(stride_of_256_blocks) {
    Ones k;
    Add(k.y, k.x, k.x, 64, 1, BinaryRepeatParams(1, 1, 1, 256, 8, 8));
}

KERNEL(result_half_over_operand) {
    Ones k;
    Adds(k.x[8], k.x, 1.0f, 64);
}

KERNEL(gather_in_place) {
    Ones k;
    Buffer table;
    k.pipe.InitBuffer(table, 32);
    LocalTensor<std::int32_t> offsets = table.Get<std::int32_t>();
    Duplicate(offsets, 0, 8);
    PipeBarrier<PIPE_V>();
    Gather(k.x, k.x, offsets.ReinterpretCast<std::uint32_t>(), 0, 8);
}

KERNEL(local_never_written) {
    Ones k;
    Adds(k.x, k.y, 1.0f, 8);
}

KERNEL(workspace_never_written) {
    Ones k;
    DataCopy(k.y, Global(workspace), 8);
}

KERNEL(writes_its_input) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(Global(in), k.x, 8);
}
