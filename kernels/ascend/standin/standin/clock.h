// The happens-before order between the pipelines of one core.
//
// Every instruction of a core gets a number. Pipelines run concurrently. Each starts its instructions in issue order,
// but may finish them in another order. clock[p][q] is the last instruction of pipe q that is certainly finished before
// the next instruction of pipe p starts. A flag passes the clock of the pipe that sets it to the pipe that waits for
// it; a barrier orders a pipe with itself. Two accesses to the same bytes must be ordered if one of them is a write.
//
// The same order gives times: an instruction starts when the scalar unit has dispatched it, its pipe is free, and what
// it waits for has finished. So the end of a kernel is the longest chain of its instructions (Verrocchio, "Performance
// modeling on DaVinci AI core", treats the instructions as discrete events likewise).
#ifndef EDGELLAMA_STANDIN_CLOCK_H
#define EDGELLAMA_STANDIN_CLOCK_H

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <tuple>

#include "costs.h"
#include "types.h"

namespace standin {

constexpr int kPipes = 7;
struct Clock : std::array<std::uint32_t, kPipes> {
    Ends at{};  // the time of the event, in cycles since the start of the kernel
};

inline const char* PipeName(int pipe) {
    static const char* const names[] = {"scalar", "vector", "cube", "MTE1", "MTE2", "MTE3", "fixpipe"};
    return names[pipe];
}

inline void Join(Clock& into, const Clock& from) {
    for (int q = 0; q < kPipes; ++q) into[q] = std::max(into[q], from[q]);
    for (int e = 0; e < kEnds; ++e) into.at[e] = std::max(into.at[e], from.at[e]);
}

class Pipelines {
public:
    // Starts a kernel: everything before it is finished.
    void Restart() {
        for (Clock& clock : clock_) {
            clock.fill(now_);
            clock.at = {};
        }
        last_.fill(now_);
        start_ = now_;
        flags_.clear();
        free_ = done_ = busy_ = {};
    }

    // Issues an instruction on `pipe` and returns its number. It keeps the pipe busy, and its result is there `latency`
    // later.
    std::uint32_t Issue(int pipe, const Ends& busy = {}, const Ends& latency = {}) {
        for (int e = 0; e < kEnds; ++e) {
            double& scalar = free_[PIPE_S][e];
            scalar = std::max(scalar, clock_[PIPE_S].at[e]) + dispatch_[e];
            busy_[PIPE_S][e] += dispatch_[e];
            free_[pipe][e] = std::max({free_[pipe][e], clock_[pipe].at[e], scalar}) + busy[e];
            busy_[pipe][e] += busy[e];
            done_[pipe][e] = std::max(done_[pipe][e], free_[pipe][e] + latency[e]);
        }
        if (pipe != PIPE_S) {  // what the scalar unit waited for is finished; its own memory accesses may not be
            for (int q = 1; q < kPipes; ++q) clock_[pipe][q] = std::max(clock_[pipe][q], clock_[PIPE_S][q]);
        }
        last_[pipe] = ++now_;
        if (pipe == PIPE_S) clock_[PIPE_S][PIPE_S] = now_;  // the scalar unit performs its own accesses in order
        return now_;
    }

    // The clock of an event that `pipe` sets now: all of its instructions so far, and everything that they waited for.
    Clock Snapshot(int pipe) const {
        Clock clock = clock_[pipe];
        clock[pipe] = last_[pipe];
        for (int e = 0; e < kEnds; ++e) clock.at[e] = std::max(clock.at[e], done_[pipe][e]);
        return clock;
    }

    void Wait(int pipe, const Clock& event) { Join(clock_[pipe], event); }

    void Barrier(int pipe) {
        if (pipe == PIPE_ALL) {
            const Ends end = End();
            for (Clock& clock : clock_) {
                Join(clock, last_);
                for (int e = 0; e < kEnds; ++e) clock.at[e] = std::max(clock.at[e], end[e] + fullBarrier_[e]);
            }
        } else {
            clock_[pipe][pipe] = last_[pipe];
            for (int e = 0; e < kEnds; ++e) clock_[pipe].at[e] = std::max(clock_[pipe].at[e], done_[pipe][e]);
        }
    }

    // Counts work of a pipe that is part of an instruction of another pipe.
    void AddBusy(int pipe, const Ends& cycles) {
        for (int e = 0; e < kEnds; ++e) busy_[pipe][e] += cycles[e];
    }

    void SetCosts(const Ends& dispatch, const Ends& fullBarrier) {
        dispatch_ = dispatch;
        fullBarrier_ = fullBarrier;
    }

    // The cycles for which a pipe works, and those until all of them are done.
    const Ends& Busy(int pipe) const { return busy_[pipe]; }
    Ends End() const {
        Ends end{};
        for (int e = 0; e < kEnds; ++e) {
            for (int q = 0; q < kPipes; ++q) end[e] = std::max({end[e], free_[q][e], done_[q][e]});
        }
        return end;
    }

    void SetFlag(int from, int to, int id) {
        auto [entry, fresh] = flags_.try_emplace(std::make_tuple(from, to, id), Snapshot(from));
        if (!fresh) {
            Fail("sync", "flag %s -> %s id %d is set twice without a wait between", PipeName(from), PipeName(to), id);
        }
    }

    void WaitFlag(int from, int to, int id) {
        auto entry = flags_.find(std::make_tuple(from, to, id));
        if (entry == flags_.end()) {
            Fail("sync", "the %s pipe waits for flag %s -> %s id %d, which no pipe sets: the chip would hang",
                 PipeName(to), PipeName(from), PipeName(to), id);
        }
        Wait(to, entry->second);
        flags_.erase(entry);
    }

    void CheckFinished() const {
        if (!flags_.empty()) {
            const auto& [from, to, id] = flags_.begin()->first;
            Fail("sync", "flag %s -> %s id %d is set, but no pipe waits for it: the next kernel would find it set",
                 PipeName(from), PipeName(to), id);
        }
    }

    const Clock& At(int pipe) const { return clock_[pipe]; }
    std::uint32_t Start() const { return start_; }

private:
    std::array<Clock, kPipes> clock_{};
    Clock last_{};
    std::uint32_t now_ = 0, start_ = 0;
    std::array<Ends, kPipes> free_{}, done_{}, busy_{};  // when a pipe can start, when its results are there, its work
    Ends dispatch_{}, fullBarrier_{};
    std::map<std::tuple<int, int, int>, Clock> flags_;
};

}  // namespace standin

#endif
