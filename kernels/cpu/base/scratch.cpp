#include "base/scratch.h"

namespace edgellama {

uint8_t* scratch(size_t bytes) {
  thread_local Arena arena;
  return arena.get(bytes);
}

}  // namespace edgellama
