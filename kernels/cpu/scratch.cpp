#include "scratch.h"

#include <memory>
#include <new>

namespace edgellama {
namespace {

struct Free {
  void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
};

}  // namespace

uint8_t* scratch(size_t bytes) {
  thread_local std::unique_ptr<uint8_t, Free> memory;
  thread_local size_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = 0;
    memory.reset(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{64})));
    size = bytes;
  }
  return memory.get();
}

}  // namespace edgellama
