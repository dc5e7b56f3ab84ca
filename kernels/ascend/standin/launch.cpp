// Runs a kernel on every core of the chip for which this file is compiled. standin_library.py calls it through ctypes.
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "kernel_operator.h"

namespace {

using Arguments = std::uint8_t**;

template <std::size_t... I>
void CallWith(void* kernel, Arguments a, std::index_sequence<I...>) {
    reinterpret_cast<void (*)(std::decay_t<decltype(a[I])>...)>(kernel)(a[I]...);
}

void Call(void* kernel, Arguments a, int count) {
    switch (count) {
        case 4: return CallWith(kernel, a, std::make_index_sequence<4>{});
        case 5: return CallWith(kernel, a, std::make_index_sequence<5>{});
        case 12: return CallWith(kernel, a, std::make_index_sequence<12>{});
        case 13: return CallWith(kernel, a, std::make_index_sequence<13>{});
        default: standin::Fail("range", "a kernel with %d arguments: launch.cpp supports 4, 5, 12 and 13", count);
    }
}

// Runs one core at a time, in the order of their numbers. A core runs until it ends or reaches SyncAll, so runs are
// exactly repeatable.
class Launch {
public:
    Launch(void* kernel, Arguments arguments, int count, std::uint64_t tilingKey, standin::Device* device)
        : kernel_(kernel), arguments_(arguments), count_(count), tilingKey_(tilingKey), device_(device) {
        device_->syncAll = [this] { AtSyncAll(); };
    }

    std::exception_ptr Run() {
        const int workers = device_->workers;
        waiting_.assign(workers, false);
        finished_.assign(workers, false);
        counts_.assign(workers, {});
        times_.assign(workers, {});
        std::vector<std::thread> threads;
        for (int i = 0; i < workers; ++i) threads.emplace_back([this, i] { Play(i); });
        for (std::thread& thread : threads) thread.join();
        return error_;
    }

private:
    void Play(int block) {
        std::unique_lock<std::mutex> lock(mutex_);
        turnChanged_.wait(lock, [&] { return turn_ == block; });
        if (error_ == nullptr) {
            std::unique_ptr<standin::Core> core = Borrow();
            standin::tCore = core.get();
            standin::tTilingKey = tilingKey_;
            core->Restart(device_, block);
            tLock = &lock;
            try {
                Call(kernel_, arguments_, count_);
                core->pipes.CheckFinished();
                if (core->tensorsOut != 0) {
                    standin::Fail("queue", "%d queue tensors are not freed at the end of the kernel", core->tensorsOut);
                }
                peakUb_ = std::max(peakUb_, core->ubUsed);
                counts_[block] = core->counts;
                for (int pipe = 0; pipe < standin::kPipes; ++pipe) times_[block][pipe] = core->pipes.Busy(pipe);
                times_[block][standin::kPipes] = core->pipes.End();
            } catch (const Stopped&) {
            } catch (...) {
                if (error_ == nullptr) error_ = std::current_exception();
            }
            standin::tCore = nullptr;
            Pool().push_back(std::move(core));
        }
        finished_[block] = true;
        PassOn(block);
    }

    void AtSyncAll() {
        standin::Core& core = standin::CurrentCore();
        const int block = core.block();
        core.pipes.Barrier(PIPE_ALL);
        waiting_[block] = true;
        PassOn(block);
        turnChanged_.wait(*tLock, [&] { return turn_ == block; });
        if (error_ != nullptr) throw Stopped();
    }

    // Selects the next core that can run. When all remaining cores wait at SyncAll, all of them continue.
    void PassOn(int block) {
        const int workers = device_->workers;
        for (int step = 1; step <= workers; ++step) {
            const int next = (block + step) % workers;
            if (!finished_[next] && !waiting_[next]) return Turn(next);
        }
        int first = -1;
        bool anyFinished = false;
        for (int i = 0; i < workers; ++i) {
            anyFinished = anyFinished || finished_[i];
            if (waiting_[i] && first < 0) first = i;
        }
        if (first < 0) return Turn(-1);
        if (anyFinished && error_ == nullptr) {
            try {
                standin::Fail("sync", "SyncAll: a core waits for a core that has ended: the chip would hang");
            } catch (...) {
                error_ = std::current_exception();
            }
        }
        waiting_.assign(workers, false);
        ++device_->epoch;
        Turn(first);
    }

    void Turn(int block) {
        turn_ = block;
        turnChanged_.notify_all();
    }

    struct Stopped {};

    static std::vector<std::unique_ptr<standin::Core>>& Pool() {
        static std::vector<std::unique_ptr<standin::Core>> pool;
        return pool;
    }

    static std::unique_ptr<standin::Core> Borrow() {
        if (Pool().empty()) return std::make_unique<standin::Core>();
        std::unique_ptr<standin::Core> core = std::move(Pool().back());
        Pool().pop_back();
        return core;
    }

    void* kernel_;
    Arguments arguments_;
    int count_;
    std::uint64_t tilingKey_;
    standin::Device* device_;
    std::mutex mutex_;
    std::condition_variable turnChanged_;
    int turn_ = 0;
    std::vector<char> waiting_, finished_;
    std::exception_ptr error_;
    static inline thread_local std::unique_lock<std::mutex>* tLock = nullptr;  // locked while the thread's core runs

public:
    std::size_t peakUb_ = 0;
    std::vector<standin::Counts> counts_;
    std::vector<std::array<standin::Ends, standin::kPipes + 1>> times_;  // the work of each pipe; the whole kernel
};

}  // namespace

extern "C" {

// Runs a kernel. Returns 0, or 1 with a message.
// - arguments, names, bytes, writable, fresh: one entry per argument.
// - blockNum, workers: the block dimension of the launch, and the cores that run.
// - peakUb: receives the largest number of bytes of unified buffer that a core used.
// - counts: receives kCounts numbers for each worker.
// - costs: kCosts pairs, or null. times: with costs, receives kPipes + 1 pairs of cycles for each worker.
int standin_run(void* kernel, int count, std::uint8_t** arguments, const char** names, const std::size_t* bytes,
                const int* writable, const int* fresh, int blockNum, int workers, std::uint64_t tilingKey,
                std::size_t* peakUb, std::int64_t* counts, const double* costs, double* times, char* message,
                std::size_t messageBytes) {
    standin::Device device;
    device.costs.Read(costs);
    device.launchEpoch = device.epoch = 1;
    device.blockNum = blockNum;
    device.workers = workers;
    for (int i = 0; i < count; ++i) {
        bool known = arguments[i] == nullptr || bytes[i] == 0;
        for (const standin::GlobalRegion& region : device.regions) known = known || region.begin == arguments[i];
        if (known) continue;  // an output that is also an input has one region
        standin::GlobalRegion region;
        region.name = names[i];
        region.begin = arguments[i];
        region.bytes = bytes[i];
        region.writable = writable[i] != 0;
        region.fresh = fresh[i] != 0;
        region.blocks.resize(bytes[i] / 32 + 1);
        device.regions.push_back(std::move(region));
    }
    Launch launch(kernel, arguments, count, tilingKey, &device);
    const std::exception_ptr error = launch.Run();
    *peakUb = launch.peakUb_;
    for (const standin::Counts& core : launch.counts_) counts = std::copy(core.begin(), core.end(), counts);
    if (costs != nullptr) {
        for (const auto& core : launch.times_) {
            for (const standin::Ends& ends : core) times = std::copy(ends.begin(), ends.end(), times);
        }
    }
    if (error == nullptr) return 0;
    try {
        std::rethrow_exception(error);
    } catch (const std::exception& e) {
        std::snprintf(message, messageBytes, "%s", e.what());
    }
    return 1;
}

// Writes 8 numbers to `out`: UB, L1, L0A, L0B, L0C in bytes; cube cores, vector cores, __NPU_ARCH__.
void standin_chip(std::int64_t* out) {
    const auto& c = standin::kChip;
    const std::size_t values[] = {c.ub, c.l1, c.l0a, c.l0b, c.l0c, static_cast<std::size_t>(c.cubeCores),
                                  static_cast<std::size_t>(c.vectorCores), static_cast<std::size_t>(c.arch)};
    for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<std::int64_t>(values[i]);
}

}  // extern "C"
