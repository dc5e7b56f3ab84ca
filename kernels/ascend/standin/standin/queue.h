// TPipe, queues and buffers: local memory, and the events that order its producers and consumers.
#ifndef EDGELLAMA_STANDIN_QUEUE_H
#define EDGELLAMA_STANDIN_QUEUE_H

#include <deque>
#include <memory>
#include <type_traits>

#include "tensor.h"

namespace AscendC {

class TPipe;

// A queue from a producer pipe to a consumer pipe. VECIN: MTE2 -> vector. VECOUT: vector -> MTE3. VECIN bound to
// VECOUT: MTE2 -> MTE3.
template <TPosition src, TPosition dst, std::int32_t depth, int mask = 0>
class TQueBind {
    static_assert(src == TPosition::VECIN || src == TPosition::VECOUT || src == TPosition::GM,
                  "the stand-in has queues in the unified buffer only");

public:
    static constexpr bool kIn = src == TPosition::VECIN || dst == TPosition::VECIN;
    static constexpr bool kOut = dst == TPosition::VECOUT || src == TPosition::VECOUT;
    static constexpr int kProducer = kIn ? PIPE_MTE2 : PIPE_V;
    static constexpr int kConsumer = kOut ? PIPE_MTE3 : PIPE_V;

    template <typename T>
    LocalTensor<T> AllocTensor() {
        for (auto& buffer : buffers_) {
            if (buffer->stage != standin::BufferState::kFree) continue;
            buffer->stage = standin::BufferState::kAllocated;
            ++standin::CurrentCore().tensorsOut;
            standin::CurrentCore().pipes.Wait(kProducer, buffer->released);
            return LocalTensor<T>(buffer.get(), buffer->offset, buffer->offset + buffer->bytes);
        }
        standin::Fail("queue", "AllocTensor: all %zu buffers of the queue are in use (FreeTensor missing?)",
                      buffers_.size());
    }

    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor) {
        standin::BufferState& buffer = Mine(tensor, "EnQue");
        if (buffer.stage != standin::BufferState::kAllocated) {
            standin::Fail("queue", "EnQue of a tensor that %s",
                          buffer.stage == standin::BufferState::kQueued ? "is already in the queue"
                                                                        : "DeQue returned: FreeTensor is missing");
        }
        if (static_cast<std::int32_t>(queue_.size()) >= depth) {
            standin::Fail("queue", "EnQue: the queue holds %zu tensors, its depth is %d", queue_.size(), depth);
        }
        buffer.stage = standin::BufferState::kQueued;
        buffer.ready = standin::CurrentCore().pipes.Snapshot(kProducer);
        queue_.push_back(&buffer);
        return true;
    }

    template <typename T>
    LocalTensor<T> DeQue() {
        if (queue_.empty()) standin::Fail("queue", "DeQue of an empty queue (EnQue missing?)");
        standin::BufferState& buffer = *queue_.front();
        queue_.pop_front();
        buffer.stage = standin::BufferState::kTaken;
        standin::CurrentCore().pipes.Wait(kConsumer, buffer.ready);
        return LocalTensor<T>(&buffer, buffer.offset, buffer.offset + buffer.bytes);
    }

    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor) {
        standin::BufferState& buffer = Mine(tensor, "FreeTensor");
        if (buffer.stage != standin::BufferState::kTaken) {
            standin::Fail("queue", "FreeTensor of a tensor that %s",
                          buffer.stage == standin::BufferState::kQueued ? "is still in the queue (DeQue missing)"
                                                                        : "never went through EnQue and DeQue");
        }
        buffer.stage = standin::BufferState::kFree;
        buffer.released = standin::CurrentCore().pipes.Snapshot(kConsumer);
        ++buffer.generation;
        --standin::CurrentCore().tensorsOut;
    }

private:
    friend class TPipe;

    template <typename T>
    standin::BufferState& Mine(const LocalTensor<T>& tensor, const char* what) {
        for (auto& buffer : buffers_) {
            if (buffer.get() != tensor.Buffer()) continue;
            if (buffer->generation != tensor.Generation()) {
                standin::Fail("queue", "%s of a tensor that is already free", what);
            }
            return *buffer;
        }
        standin::Fail("queue", "%s of a tensor of another queue or buffer", what);
    }

    std::vector<std::unique_ptr<standin::BufferState>> buffers_;
    std::deque<standin::BufferState*> queue_;
};

template <TPosition position, std::int32_t depth, int mask = 0>
using TQue = std::conditional_t<position == TPosition::VECIN, TQueBind<TPosition::GM, TPosition::VECIN, depth, mask>,
                                TQueBind<TPosition::VECOUT, TPosition::GM, depth, mask>>;

// Memory without events. A kernel that uses it from two pipes must order the accesses itself.
template <TPosition position = TPosition::VECCALC>
class TBuf {
public:
    template <typename T>
    LocalTensor<T> Get() {
        return Get<T>(static_cast<std::uint32_t>(buffer_.bytes / sizeof(T)));
    }

    template <typename T>
    LocalTensor<T> Get(std::uint32_t elements) {
        return GetWithOffset<T>(elements, 0);
    }

    template <typename T>
    LocalTensor<T> GetWithOffset(std::uint32_t elements, std::uint32_t byteOffset) {
        if (byteOffset + elements * sizeof(T) > buffer_.bytes) {
            standin::Fail("bounds", "TBuf: %zu bytes from byte %u of a buffer of %zu", elements * sizeof(T),
                          byteOffset, buffer_.bytes);
        }
        return LocalTensor<T>(&buffer_, buffer_.offset + byteOffset,
                              buffer_.offset + byteOffset + elements * sizeof(T));
    }

private:
    friend class TPipe;
    standin::BufferState buffer_;
};

class TPipe {
public:
    TPipe() { Current() = this; }
    ~TPipe() { Current() = nullptr; }
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;

    template <TPosition src, TPosition dst, std::int32_t depth, int mask>
    bool InitBuffer(TQueBind<src, dst, depth, mask>& queue, standin::U8 count, std::uint32_t bytes) {
        using Queue = TQueBind<src, dst, depth, mask>;
        int& events = standin::CurrentCore().eventsOf[Queue::kIn ? 0 : 1];
        events += count;
        if (events > 8) {
            standin::Fail("capacity", "%d queue buffers at %s: the chip has 8 events", events,
                          Queue::kIn ? "VECIN" : "VECOUT");
        }
        for (int i = 0; i < count; ++i) {
            auto buffer = std::make_unique<standin::BufferState>();
            Reserve(*buffer, bytes);
            buffer->released.fill(standin::CurrentCore().pipes.Start());
            queue.buffers_.push_back(std::move(buffer));
        }
        return true;
    }

    template <TPosition position>
    bool InitBuffer(TBuf<position>& buffer, std::uint32_t bytes) {
        Reserve(buffer.buffer_, bytes);
        buffer.buffer_.stage = standin::BufferState::kTaken;
        return true;
    }

    TEventID FetchEventID(HardEvent) { return 0; }

    static TPipe*& Current() {
        static thread_local TPipe* pipe = nullptr;
        return pipe;
    }

private:
    static void Reserve(standin::BufferState& buffer, std::uint32_t bytes) {
        standin::Core& core = standin::CurrentCore();
        buffer.offset = core.ubUsed;
        buffer.bytes = standin::WholeBlockBytes(bytes);
        core.ubUsed += buffer.bytes;
        if (core.ubUsed > standin::kChip.ub) {
            standin::Fail("capacity", "the unified buffer of the %s has %zu bytes, the kernel needs %zu",
                          standin::kChip.name, standin::kChip.ub, core.ubUsed);
        }
        if (++core.buffers > 64) standin::Fail("capacity", "a kernel has at most 64 buffers");
    }
};

inline TPipe* GetTPipePtr() { return TPipe::Current(); }

}  // namespace AscendC

#endif
