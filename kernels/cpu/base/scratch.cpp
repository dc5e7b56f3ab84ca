#include "base/scratch.h"

#include <array>
#include <cstring>
#include <memory>
#include <new>

#include "attention/attention.h"

namespace edgellama {
namespace {

class Arena {
 public:
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

}  // namespace

uint8_t* scratch(size_t bytes) {
  thread_local Arena arena;
  return arena.get(bytes);
}

uint8_t* attention_scratch(const AttentionArgs& a) {
  thread_local Arena arena;
  thread_local std::array<int32_t, 6> laid_out = {};
  const std::array<int32_t, 6> sizes = {a.rows, a.heads, a.groups, a.head_dim, a.capacity, a.threads};
  const size_t bytes = attention_scratch_bytes(a);
  uint8_t* memory = arena.get(bytes);
  if (sizes != laid_out) {
    std::memset(memory, 0, bytes);
    laid_out = sizes;
  }
  return memory;
}

}  // namespace edgellama
