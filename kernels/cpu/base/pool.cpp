#include "base/pool.h"

#include <chrono>
#include <condition_variable>
#include <thread>

#include <pthread.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edgellama {
namespace {

using Clock = std::chrono::steady_clock;

// How long a worker spins for work before it sleeps. It is longer than the gap between two operators and than most gaps
// between two decode steps (sampling), and so short that a waiting application does not load the CPU.
constexpr auto kSpin = std::chrono::microseconds(500);
// A thread that waits inside a region yields its core after this many looks, because its peer may need that core.
constexpr int kLooksBeforeYield = 512;

thread_local bool inside_region = false;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Done>
void spin_until(Done done) {
  for (int looks = 0; !done(); ++looks) {
    if (looks < kLooksBeforeYield)
      pause();
    else
      std::this_thread::yield();
  }
}

}  // namespace

void Barrier::wait() {
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    taken_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
  }
}

// One worker thread and its mailbox. `ticket` increases by one for each region in which the worker takes part.
struct ThreadPool::Slot {
  explicit Slot(int i) : index(i) {}
  const int index;
  alignas(64) std::atomic<unsigned> ticket{0};
  std::atomic<bool> asleep{false};
  bool stop = false;  // written before the last ticket
  std::mutex mutex;
  std::condition_variable wake;
  std::thread thread;

  void post() {
    ticket.fetch_add(1, std::memory_order_seq_cst);
    if (asleep.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(mutex);
      wake.notify_one();
    }
  }

  void await(unsigned seen) {
    const auto posted = [&] { return ticket.load(std::memory_order_seq_cst) != seen; };
    const auto end = Clock::now() + kSpin;
    do {
      for (int looks = 0; looks < 64; ++looks) {
        if (posted()) return;
        pause();
      }
      std::this_thread::yield();  // with more threads than cores, a spinning thread must not delay a working one
    } while (Clock::now() < end);
    std::unique_lock<std::mutex> lock(mutex);
    asleep.store(true, std::memory_order_seq_cst);
    wake.wait(lock, posted);
    asleep.store(false, std::memory_order_relaxed);
  }
};

namespace {

std::atomic<ThreadPool*> current{nullptr};

// A forked child has none of its parent's threads. It creates its own pool and does not touch the parent's object,
// whose threads it cannot join.
void forget_pool() { current.store(nullptr); }

}  // namespace

ThreadPool& ThreadPool::instance() {
  if (ThreadPool* pool = current.load(std::memory_order_acquire)) return *pool;
  static std::mutex making;
  std::lock_guard<std::mutex> lock(making);
  ThreadPool* pool = current.load(std::memory_order_acquire);
  if (!pool) {
    static const int at_fork = pthread_atfork(nullptr, nullptr, forget_pool);
    (void)at_fork;
    // The pool is never destroyed: kernels may still run on other threads while static objects are destroyed.
    pool = new ThreadPool();
    current.store(pool, std::memory_order_release);
  }
  return *pool;
}

ThreadPool::ThreadPool() = default;

ThreadPool::~ThreadPool() {
  for (auto& slot : slots_) {
    slot->stop = true;
    slot->post();
    slot->thread.join();
  }
}

void ThreadPool::run_erased(int threads, Task task, const void* argument) {
  void* const arg = const_cast<void*>(argument);
  threads = threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads;
  if (threads == 1 || inside_region) {
    Worker alone(0, 1, nullptr);
    task(arg, alone);
    return;
  }
  std::lock_guard<std::mutex> lock(region_);
  while (static_cast<int>(slots_.size()) < threads - 1) {
    slots_.push_back(std::make_unique<Slot>(static_cast<int>(slots_.size()) + 1));
    Slot& slot = *slots_.back();
    slot.thread = std::thread([this, &slot] { serve(slot); });
  }
  task_ = task;
  argument_ = arg;
  count_ = threads;
  barrier_.reset(threads);
  running_.store(threads - 1, std::memory_order_relaxed);
  for (int i = 0; i < threads - 1; ++i) slots_[i]->post();
  inside_region = true;
  Worker first(0, threads, &barrier_);
  task(arg, first);
  inside_region = false;
  spin_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::serve(Slot& slot) {
  inside_region = true;
  for (unsigned seen = 0;; ++seen) {
    slot.await(seen);
    if (slot.stop) return;
    Worker me(slot.index, count_, &barrier_);
    task_(argument_, me);
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace edgellama
