// LocalTensor, in the unified buffer, and GlobalTensor, in global memory.
#ifndef EDGELLAMA_STANDIN_TENSOR_H
#define EDGELLAMA_STANDIN_TENSOR_H

#include "core.h"

namespace standin {

// The state of one buffer of local memory. FreeTensor changes the generation, so a tensor that is used after FreeTensor
// has another generation than its buffer.
struct BufferState {
    enum Stage { kFree, kAllocated, kQueued, kTaken } stage = kFree;
    std::uint32_t generation = 0;
    std::size_t offset = 0, bytes = 0;
    Clock ready{}, released{};
};

}  // namespace standin

namespace AscendC {

template <typename T>
class LocalTensor {
public:
    using PrimType = T;

    LocalTensor() = default;
    LocalTensor(standin::BufferState* buffer, std::size_t offset, std::size_t end)
        : buffer_(buffer), generation_(buffer->generation), offset_(offset), end_(end) {}

    LocalTensor operator[](std::uint32_t elements) const {
        LocalTensor moved = *this;
        moved.offset_ += elements * sizeof(T);
        if (moved.offset_ > end_) {
            standin::Fail("bounds", "index %u of a local tensor of %zu elements", elements,
                          (end_ - offset_) / sizeof(T));
        }
        return moved;
    }

    template <typename U>
    LocalTensor<U> ReinterpretCast() const {
        return LocalTensor<U>(buffer_, offset_, end_, generation_);
    }

    std::uint32_t GetSize() const { return static_cast<std::uint32_t>((end_ - offset_) / sizeof(T)); }

    // GetValue and SetValue run on the scalar pipe.
    T GetValue(std::uint32_t index) const {
        Access(index * sizeof(T), sizeof(T), PIPE_S, standin::CurrentCore().IssueScalar(false), false, "GetValue");
        return *At(index);
    }

    template <typename U>
    void SetValue(std::uint32_t index, U value) const {
        Access(index * sizeof(T), sizeof(T), PIPE_S, standin::CurrentCore().IssueScalar(false), true, "SetValue");
        *At(index) = static_cast<T>(value);
    }

    // --- for the stand-in's own functions ---
    LocalTensor(standin::BufferState* buffer, std::size_t offset, std::size_t end, std::uint32_t generation)
        : buffer_(buffer), generation_(generation), offset_(offset), end_(end) {}

    T* At(std::size_t index) const {
        return reinterpret_cast<T*>(standin::CurrentCore().Ub() + offset_) + index;
    }

    // Checks and records an access to bytes [relative, relative + bytes) of this tensor by instruction `seq` on `pipe`.
    void Access(std::size_t relative, std::size_t bytes, int pipe, std::uint32_t seq, bool write,
                const char* what) const {
        if (buffer_ == nullptr) standin::Fail("queue", "%s uses a tensor that was never allocated", what);
        if (buffer_->generation != generation_) {
            standin::Fail("queue", "%s uses a tensor after FreeTensor", what);
        }
        if (buffer_->stage == standin::BufferState::kQueued) {
            standin::Fail("queue", "%s uses a tensor that is in a queue: EnQue without DeQue", what);
        }
        if (offset_ + relative + bytes > end_) {
            standin::Fail("bounds", "%s reaches byte %zu of a local tensor of %zu bytes", what, relative + bytes,
                          end_ - offset_);
        }
        standin::CurrentCore().TouchUb(offset_ + relative, bytes, pipe, seq, write, what);
    }

    void RequireAligned(const char* what, std::size_t alignment = 32) const {
        if (offset_ % alignment != 0) {
            standin::Fail("alignment", "%s: a local address is %zu bytes past a %zu-byte boundary", what,
                          offset_ % alignment, alignment);
        }
    }

    standin::BufferState* Buffer() const { return buffer_; }
    std::uint32_t Generation() const { return generation_; }
    std::size_t Offset() const { return offset_; }
    std::size_t Bytes() const { return end_ - offset_; }

private:
    standin::BufferState* buffer_ = nullptr;
    std::uint32_t generation_ = 0;
    std::size_t offset_ = 0, end_ = 0;  // bytes of the unified buffer
};

template <typename T>
class GlobalTensor {
public:
    using PrimType = T;

    void SetGlobalBuffer(T* buffer, std::uint64_t elements = 0) {
        data_ = buffer;
        region_ = &standin::CurrentCore().device().Find(buffer);
        const std::size_t offset = reinterpret_cast<std::uint8_t*>(buffer) - region_->begin;
        bytes_ = elements == 0 ? region_->bytes - offset : elements * sizeof(T);
        if (offset + bytes_ > region_->bytes) {
            standin::Fail("bounds", "a global tensor of %zu bytes at byte %zu of %s, which has %zu bytes", bytes_,
                          offset, region_->name.c_str(), region_->bytes);
        }
    }

    GlobalTensor operator[](std::uint64_t elements) const {
        GlobalTensor moved = *this;
        if (elements * sizeof(T) > bytes_) {
            standin::Fail("bounds", "%s: index %llu of a global tensor of %zu elements", Region("[]").name.c_str(),
                          static_cast<unsigned long long>(elements), bytes_ / sizeof(T));
        }
        moved.data_ += elements;
        moved.bytes_ -= elements * sizeof(T);
        return moved;
    }

    // Runs on the scalar pipe, through the data cache.
    T GetValue(std::uint64_t index) const {
        Access(index * sizeof(T), sizeof(T), PIPE_S, standin::CurrentCore().IssueScalar(true), false, "GetValue");
        return data_[index];
    }

    std::uint64_t GetSize() const { return bytes_ / sizeof(T); }
    T* GetPhyAddr() const { return data_; }

    // --- for the stand-in's own functions ---
    T* At(std::size_t index) const { return data_ + index; }

    void Access(std::size_t relative, std::size_t bytes, int pipe, std::uint32_t seq, bool write,
                const char* what) const {
        standin::GlobalRegion& region = Region(what);
        if (relative + bytes > bytes_) {
            standin::Fail("bounds", "%s reaches byte %zu of a global tensor of %zu bytes in %s", what,
                          relative + bytes, bytes_, region.name.c_str());
        }
        const std::size_t offset = reinterpret_cast<std::uint8_t*>(data_) - region.begin;
        standin::CurrentCore().TouchGlobal(region, offset + relative, bytes, pipe, seq, write, what);
    }

    void RequireAligned(const char* what) const {
        const standin::GlobalRegion& region = Region(what);
        const std::size_t offset = reinterpret_cast<std::uint8_t*>(data_) - region.begin;
        if (offset % 32 != 0) {
            standin::Fail("alignment", "%s: an address in %s is %zu bytes past a 32-byte boundary", what,
                          region.name.c_str(), offset % 32);
        }
    }

private:
    standin::GlobalRegion& Region(const char* what) const {
        if (region_ == nullptr) standin::Fail("bounds", "%s uses a global tensor without SetGlobalBuffer", what);
        return *region_;
    }

    T* data_ = nullptr;
    std::size_t bytes_ = 0;
    standin::GlobalRegion* region_ = nullptr;
};

}  // namespace AscendC

#endif
