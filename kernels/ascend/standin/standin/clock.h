// Happens-before between the pipelines of one core.
//
// Every instruction of a core gets a number; pipelines run at the same time and each only in issue order of starting,
// not of finishing. clock[p][q] is the last instruction of pipe q that is known to be finished before an instruction
// issued on pipe p from now on can start. A flag carries the clock of the pipe that sets it to the pipe that waits; a
// barrier orders a pipe with itself. Two accesses to the same bytes, one of them a write, must be ordered this way.
#ifndef EDGELLAMA_STANDIN_CLOCK_H
#define EDGELLAMA_STANDIN_CLOCK_H

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <tuple>

#include "types.h"

namespace standin {

constexpr int kPipes = 7;
using Clock = std::array<std::uint32_t, kPipes>;

inline const char* PipeName(int pipe) {
    static const char* const names[] = {"scalar", "vector", "cube", "MTE1", "MTE2", "MTE3", "fixpipe"};
    return names[pipe];
}

inline void Join(Clock& into, const Clock& from) {
    for (int q = 0; q < kPipes; ++q) into[q] = std::max(into[q], from[q]);
}

class Pipelines {
public:
    // Everything before this kernel is finished.
    void Restart() {
        for (Clock& clock : clock_) clock.fill(now_);
        last_.fill(now_);
        start_ = now_;
        flags_.clear();
    }

    // Numbers an instruction issued on `pipe`.
    std::uint32_t Issue(int pipe) {
        if (pipe != PIPE_S) {  // what the scalar unit has waited for is over; its own memory accesses may not be
            for (int q = 1; q < kPipes; ++q) clock_[pipe][q] = std::max(clock_[pipe][q], clock_[PIPE_S][q]);
        }
        last_[pipe] = ++now_;
        if (pipe == PIPE_S) clock_[PIPE_S][PIPE_S] = now_;  // the scalar unit runs its own accesses in order
        return now_;
    }

    // What an event set now on `pipe` stands for: all of that pipe's instructions so far, and what they waited for.
    Clock Snapshot(int pipe) const {
        Clock clock = clock_[pipe];
        clock[pipe] = last_[pipe];
        return clock;
    }

    void Wait(int pipe, const Clock& event) { Join(clock_[pipe], event); }

    void Barrier(int pipe) {
        if (pipe == PIPE_ALL) {
            for (Clock& clock : clock_) Join(clock, last_);
        } else {
            clock_[pipe][pipe] = last_[pipe];
        }
    }

    void SetFlag(int from, int to, int id) {
        auto [entry, fresh] = flags_.try_emplace(std::make_tuple(from, to, id), Snapshot(from));
        if (!fresh) {
            Fail("sync", "flag %s -> %s id %d is set twice without a wait", PipeName(from), PipeName(to), id);
        }
    }

    void WaitFlag(int from, int to, int id) {
        auto entry = flags_.find(std::make_tuple(from, to, id));
        if (entry == flags_.end()) {
            Fail("sync", "the %s pipe waits for flag %s -> %s id %d, which nothing sets: the chip would hang",
                 PipeName(to), PipeName(from), PipeName(to), id);
        }
        Wait(to, entry->second);
        flags_.erase(entry);
    }

    void CheckFinished() const {
        if (!flags_.empty()) {
            const auto& [from, to, id] = flags_.begin()->first;
            Fail("sync", "flag %s -> %s id %d is set and never waited for: the next kernel would find it set",
                 PipeName(from), PipeName(to), id);
        }
    }

    const Clock& At(int pipe) const { return clock_[pipe]; }
    std::uint32_t Start() const { return start_; }

private:
    std::array<Clock, kPipes> clock_{};
    Clock last_{};
    std::uint32_t now_ = 0, start_ = 0;
    std::map<std::tuple<int, int, int>, Clock> flags_;
};

}  // namespace standin

#endif
