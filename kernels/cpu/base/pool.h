// A fork/join thread pool. A process has one, and all models share it.
//
//   ThreadPool::instance().run(threads, [&](Worker& me) {
//     ... share me.index() of me.count() ...
//     me.barrier();
//     ... next phase ...
//   });
//
// One call of run() is a region. The caller takes part as index 0. Waiting threads spin for a bounded time and then
// sleep, so an idle process keeps no core busy. Regions of several callers run one after the other. A region that
// starts inside a region runs on the calling thread alone (index 0 of 1), so regions cannot deadlock. The function must
// not throw.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "base/export.h"
#include "base/rounding.h"

namespace edgellama {

// A reusable barrier for the `count` threads of one region.
class EDGELLAMA_EXPORT Barrier {
 public:
  void reset(int count) {
    count_ = count;
    arrived_.store(0, std::memory_order_relaxed);
    taken_.store(0, std::memory_order_relaxed);
  }
  void wait();
  long take() { return taken_.fetch_add(1, std::memory_order_relaxed); }

 private:
  int count_ = 1;
  alignas(64) std::atomic<long> taken_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

// One thread's view of a region.
class Worker {
 public:
  Worker(int index, int count, Barrier* barrier) : index_(index), count_(count), barrier_(barrier) {}
  int index() const { return index_; }
  int count() const { return count_; }
  // Waits for all threads of the region. Every thread must call it the same number of times.
  void barrier() {
    taken_ = 0;
    if (count_ > 1) barrier_->wait();
  }
  // Returns 0, 1, 2, ...: each number to one thread of the region, and from 0 again after each barrier. Use it instead
  // of share() when a thread can be delayed, so that the others take over its parts.
  long take() { return count_ > 1 ? barrier_->take() : taken_++; }

 private:
  int index_, count_;
  long taken_ = 0;
  Barrier* barrier_;
};

// A thread's part of [0, total): contiguous, in multiples of `grain`, and as even as whole grains allow.
struct Range {
  long begin, end;
};
static inline Range share(const Worker& me, long total, long grain = 1) {
  const long grains = divide_up(total, grain);
  const long begin = grains * me.index() / me.count() * grain;
  const long end = grains * (me.index() + 1) / me.count() * grain;
  return {begin < total ? begin : total, end < total ? end : total};
}

class EDGELLAMA_EXPORT ThreadPool {
 public:
  static constexpr int kMaxThreads = 256;

  static ThreadPool& instance();
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Runs fn(Worker&) on `threads` threads (clipped to 1..kMaxThreads). Returns when all have finished.
  template <typename Fn>
  void run(int threads, Fn&& fn) {
    run_erased(threads, [](void* f, Worker& me) { (*static_cast<std::remove_reference_t<Fn>*>(f))(me); }, &fn);
  }

 private:
  using Task = void (*)(void*, Worker&);
  struct Slot;

  ThreadPool();
  void run_erased(int threads, Task task, const void* argument);
  void serve(Slot& slot);

  std::mutex region_;  // held while a region runs
  std::vector<std::unique_ptr<Slot>> slots_;
  Task task_ = nullptr;
  void* argument_ = nullptr;
  int count_ = 1;
  Barrier barrier_;
  alignas(64) std::atomic<int> running_{0};
};

}  // namespace edgellama
