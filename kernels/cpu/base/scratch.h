// Working memory of the thread that runs an operator. Every operator reuses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace edgellama {

// One block of memory, aligned to 64 bytes, that grows when a call needs more.
class Arena {
 public:
  // At least `bytes` bytes, valid until the next call. Their contents are undefined.
  uint8_t* get(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{64})));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
  size_t size_ = 0;
};

// At least `bytes` bytes of this thread's arena, valid until this thread calls it again. Contents are undefined.
uint8_t* scratch(size_t bytes);

}  // namespace edgellama
