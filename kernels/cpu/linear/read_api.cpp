#include "linear/read.h"

#include <atomic>

#include "base/export.h"
#include "base/kernels.h"
#include "base/pool.h"

// Reads `bytes` bytes on `threads` threads, each an equal part, and writes the exclusive or of the 32-bit words to
// `found`. `ahead` as in ReadFunction. Returns 0, or -2 for a wrong argument: `bytes` is a multiple of kReadBlock.
EDGELLAMA_API int edgellama_read(int threads, const uint8_t* data, long bytes, long ahead, uint32_t* found) {
  using namespace edgellama;
  if (threads < 1 || !data || !found || bytes < 0 || bytes % kReadBlock || ahead < 0) return -2;
  const ReadFunction read = kernels(best_isa())->read;
  std::atomic<uint32_t> all{0};
  ThreadPool::instance().run(threads, [&](Worker& me) {
    const Range part = share(me, bytes, kReadBlock);
    all.fetch_xor(read(data + part.begin, part.end - part.begin, ahead), std::memory_order_relaxed);
  });
  *found = all.load(std::memory_order_relaxed);
  return 0;
}
