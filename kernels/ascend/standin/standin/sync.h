// Flags, barriers, block numbers and SyncAll.
#ifndef EDGELLAMA_STANDIN_SYNC_H
#define EDGELLAMA_STANDIN_SYNC_H

#include "queue.h"

namespace AscendC {

template <pipe_t src, pipe_t dst>
class TQueSync {
public:
    void SetFlag(TEventID id) {
        Check(id);
        standin::CurrentCore().pipes.SetFlag(src, dst, id);
    }
    void WaitFlag(TEventID id) {
        Check(id);
        standin::CurrentCore().pipes.WaitFlag(src, dst, id);
    }

private:
    static void Check(TEventID id) {
        if (id < 0 || id > 7) standin::Fail("range", "event id %d: the chip has 0 to 7", id);
    }
};

inline std::pair<int, int> PipesOf(HardEvent event) {
    switch (event) {
        case HardEvent::MTE2_V: return {PIPE_MTE2, PIPE_V};
        case HardEvent::V_MTE2: return {PIPE_V, PIPE_MTE2};
        case HardEvent::MTE3_V: return {PIPE_MTE3, PIPE_V};
        case HardEvent::V_MTE3: return {PIPE_V, PIPE_MTE3};
        case HardEvent::V_S: return {PIPE_V, PIPE_S};
        case HardEvent::S_V: return {PIPE_S, PIPE_V};
        case HardEvent::MTE2_S: return {PIPE_MTE2, PIPE_S};
        case HardEvent::S_MTE2: return {PIPE_S, PIPE_MTE2};
        case HardEvent::MTE3_S: return {PIPE_MTE3, PIPE_S};
        case HardEvent::S_MTE3: return {PIPE_S, PIPE_MTE3};
        case HardEvent::MTE2_MTE3: return {PIPE_MTE2, PIPE_MTE3};
        case HardEvent::MTE3_MTE2: return {PIPE_MTE3, PIPE_MTE2};
        case HardEvent::V_V: return {PIPE_V, PIPE_V};
    }
    standin::Fail("unsupported", "the stand-in does not know this event");
}

template <HardEvent event>
void SetFlag(std::int32_t id) {
    if (!standin::kChip.isasiFlags) {
        standin::Fail("unsupported", "SetFlag/WaitFlag does not exist on the %s: use TQueSync", standin::kChip.name);
    }
    const auto [from, to] = PipesOf(event);
    standin::CurrentCore().pipes.SetFlag(from, to, id);
}

template <HardEvent event>
void WaitFlag(std::int32_t id) {
    const auto [from, to] = PipesOf(event);
    standin::CurrentCore().pipes.WaitFlag(from, to, id);
}

template <pipe_t pipe>
void PipeBarrier() {
    static_assert(pipe != PIPE_S, "the scalar pipe has no barrier and needs none");
    standin::Core& core = standin::CurrentCore();
    if (pipe == PIPE_V) ++core.counts[standin::kVectorBarriers];
    if (pipe == PIPE_ALL) ++core.counts[standin::kFullBarriers];
    core.pipes.Barrier(pipe);
}

// Synchronises all cores in hardware.
template <bool isAIVOnly = true>
void SyncAll() {
    if (!standin::kChip.hardSyncAll) {
        standin::Fail("unsupported", "SyncAll without a workspace does not exist on the %s", standin::kChip.name);
    }
    standin::CurrentCore().device().syncAll();
}

// Synchronises all cores through global memory, which must contain zeros.
template <bool isAIVOnly = true>
void SyncAll(const GlobalTensor<std::int32_t>& gmWorkspace, const LocalTensor<std::int32_t>& ubWorkspace,
             std::int32_t = 0) {
    if (!standin::kChip.softSyncAll) {
        standin::Fail("unsupported", "SyncAll does not exist on the %s", standin::kChip.name);
    }
    const std::size_t need = static_cast<std::size_t>(standin::CurrentCore().device().workers) * 32;
    if (gmWorkspace.GetSize() * 4 < need || ubWorkspace.Bytes() < need) {
        standin::Fail("bounds", "SyncAll needs %zu bytes of global and of local workspace", need);
    }
    standin::CurrentCore().device().syncAll();
}

inline std::int64_t GetBlockIdx() { return standin::CurrentCore().block(); }
inline std::int64_t GetBlockNum() { return standin::CurrentCore().device().blockNum; }
inline std::int64_t GetTaskRation() {
    return standin::CurrentCore().device().workers / standin::CurrentCore().device().blockNum;
}

}  // namespace AscendC

#endif
