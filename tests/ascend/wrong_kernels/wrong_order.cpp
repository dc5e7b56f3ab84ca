// Kernels that misuse queues, or access memory from two pipes or two cores without an order between them.
#include "wrong.h"

namespace {

struct Queued {
    Queued() {
        pipe.InitBuffer(queue, 1, N * sizeof(float));
        pipe.InitBuffer(other, 1, N * sizeof(float));
        pipe.InitBuffer(buffer, N * sizeof(float));
        y = buffer.Get<float>();
    }
    LocalTensor<float> Loaded(GM_ADDR in) {
        LocalTensor<float> x = queue.AllocTensor<float>();
        DataCopy(x, Global(in), N);
        return x;
    }
    TPipe pipe;
    InQueue queue, other;
    Buffer buffer;
    LocalTensor<float> y;
};

}  // namespace

KERNEL(deque_without_enque) {
    Queued k;
    k.Loaded(in);
    k.queue.DeQue<float>();
}

KERNEL(enque_twice) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    k.queue.EnQue(x);
    k.queue.EnQue(x);
}

KERNEL(enque_past_the_depth) {
    TPipe pipe;
    InQueue queue;
    pipe.InitBuffer(queue, 2, 32);
    for (int i = 0; i < 2; ++i) {
        LocalTensor<float> x = queue.AllocTensor<float>();
        DataCopy(x, Global(in), 8);
        queue.EnQue(x);
    }
}

KERNEL(use_of_no_tensor) {
    Ones k;
    Adds(k.y, LocalTensor<float>(), 1.0f, 8);
}

KERNEL(use_while_queued) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    k.queue.EnQue(x);
    Adds(k.y, x, 1.0f, N);
}

KERNEL(free_before_deque) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    k.queue.EnQue(x);
    k.queue.FreeTensor(x);
}

KERNEL(free_twice) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    k.queue.EnQue(x);
    x = k.queue.DeQue<float>();
    k.queue.FreeTensor(x);
    k.queue.FreeTensor(x);
}

KERNEL(use_after_free) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    k.queue.EnQue(x);
    x = k.queue.DeQue<float>();
    k.queue.FreeTensor(x);
    Adds(k.y, x, 1.0f, N);
}

KERNEL(free_missing) {
    Queued k;
    for (int i = 0; i < 2; ++i) {
        LocalTensor<float> x = k.Loaded(in);
        k.queue.EnQue(x);
        k.queue.DeQue<float>();
    }
}

KERNEL(free_missing_at_the_end) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    k.queue.EnQue(x);
    k.queue.DeQue<float>();
}

KERNEL(free_to_another_queue) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    k.queue.EnQue(x);
    x = k.queue.DeQue<float>();
    k.other.FreeTensor(x);
}

// The vector pipe reads a queue's tensor without EnQue and DeQue, which would order it after the copy.
KERNEL(enque_missing) {
    Queued k;
    LocalTensor<float> x = k.Loaded(in);
    Adds(k.y, x, 1.0f, N);
}

KERNEL(vector_after_copy_in) {
    Ones k;
    DataCopy(k.y, Global(in), N);
    Adds(k.x, k.y, 1.0f, N);
}

KERNEL(vector_after_vector) {
    Ones k;
    Adds(k.y, k.x, 1.0f, N);
    Adds(k.x, k.y, 1.0f, N);
}

KERNEL(vector_over_vector_read) {
    Ones k;
    Adds(k.y, k.x, 1.0f, N);
    Duplicate(k.x, 0.0f, N);
}

KERNEL(copy_out_after_vector) {
    Ones k;
    DataCopy(Global(out), k.x, N);
}

KERNEL(vector_over_copy_out) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(Global(out), k.x, N);
    Duplicate(k.x, 0.0f, N);
}

KERNEL(copy_in_over_vector_read) {
    Ones k;
    Adds(k.y, k.x, 1.0f, N);
    DataCopy(k.x, Global(in), N);
}

KERNEL(vector_after_scalar) {
    Ones k;
    Order<PIPE_V, PIPE_S>();
    k.x.SetValue(0, 2.0f);
    Adds(k.y, k.x, 1.0f, N);
}

KERNEL(scalar_after_vector) {
    Ones k;
    k.x.GetValue(0);
}

KERNEL(copy_in_after_copy_out_of_global) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(Global(out), k.x, N);
    DataCopy(k.y, Global(out), N);
}

KERNEL(copy_out_over_copy_in_of_global) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(k.y, Global(out), N);
    DataCopy(Global(out), k.x, N);
}

KERNEL(copies_in_overlap) {
    Ones k;
    DataCopy(k.y, Global(in), N);
    DataCopy(k.y, Global(in), N);
}

KERNEL(flag_of_another_pair) {
    Ones k;
    DataCopy(k.y, Global(in), N);
    Order<PIPE_MTE2, PIPE_MTE3>();
    Adds(k.x, k.y, 1.0f, N);
}

KERNEL(flag_set_too_early) {
    Ones k;
    TQueSync<PIPE_MTE2, PIPE_V> sync;
    sync.SetFlag(0);
    DataCopy(k.y, Global(in), N);
    sync.WaitFlag(0);
    Adds(k.x, k.y, 1.0f, N);
}

// Order is transitive: vector -> scalar -> copy out is sufficient.
KERNEL(right_through_the_scalar_pipe) {
    Ones k;
    Order<PIPE_V, PIPE_S>();
    Order<PIPE_S, PIPE_MTE3>();
    DataCopy(Global(out), k.x, N);
}

KERNEL(flag_never_set) {
    TQueSync<PIPE_V, PIPE_S> sync;
    sync.WaitFlag(0);
}

KERNEL(flag_set_twice) {
    TQueSync<PIPE_V, PIPE_S> sync;
    sync.SetFlag(0);
    sync.SetFlag(0);
}

KERNEL(flag_never_waited_for) {
    TQueSync<PIPE_V, PIPE_S> sync;
    sync.SetFlag(3);
}

KERNEL(event_id_8) {
    TQueSync<PIPE_V, PIPE_S> sync;
    sync.SetFlag(8);
}

// --- on two cores ---

KERNEL(two_cores_write_the_same) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(Global(out), k.x, 8);
}

KERNEL(two_cores_read_and_write_the_same) {
    Ones k;
    Order<PIPE_V, PIPE_MTE3>();
    if (GetBlockIdx() == 0) {
        DataCopy(k.y, Global(out), 8);
    } else {
        DataCopy(Global(out), k.x, 8);
    }
}

KERNEL(reads_what_another_core_writes) {
    Ones k;
    const int me = static_cast<int>(GetBlockIdx());
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(Global(workspace)[me * 8], k.x, 8);
    PipeBarrier<PIPE_ALL>();
    DataCopy(k.y, Global(workspace)[(1 - me) * 8], 8);
}

KERNEL(right_with_syncall) {
    Ones k;
    const int me = static_cast<int>(GetBlockIdx());
    Order<PIPE_V, PIPE_MTE3>();
    DataCopy(Global(workspace)[me * 8], k.x, 8);
    PipeBarrier<PIPE_ALL>();
    SyncAll();
    DataCopy(k.y, Global(workspace)[(1 - me) * 8], 8);
}

KERNEL(one_core_skips_syncall) {
    if (GetBlockIdx() == 0) SyncAll();
}
