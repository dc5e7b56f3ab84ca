// One core: its unified buffer, the record of the accesses to its bytes, and the checks of every access.
#ifndef EDGELLAMA_STANDIN_CORE_H
#define EDGELLAMA_STANDIN_CORE_H

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "chip.h"
#include "clock.h"
#include "counts.h"

namespace standin {

// Rounds up to whole 32-byte blocks.
constexpr std::size_t WholeBlockBytes(std::size_t bytes) { return (bytes + 31) / 32 * 32; }

// A tensor in global memory: an argument of the kernel. Accesses are recorded per 32-byte block.
struct GlobalRegion {
    struct Block {
        std::uint32_t write = 0, read[kPipes] = {};  // instruction numbers of the core below
        std::uint32_t writeEpoch = 0, readEpoch = 0;
        std::int32_t writeCore = -1, readCore = -1;
        std::uint8_t writePipe = 0;
    };
    static constexpr std::int32_t kSeveralCores = -2;

    std::string name;
    std::uint8_t* begin = nullptr;
    std::size_t bytes = 0;
    bool writable = false;
    bool fresh = false;  // workspace: it is an error to read what this launch has not written
    std::vector<Block> blocks;
};

// The state that the cores of one launch share.
struct Device {
    std::vector<GlobalRegion> regions;
    std::uint32_t launchEpoch = 0;           // the first epoch of this launch
    std::uint32_t epoch = 0;                 // each SyncAll starts an epoch; accesses of different epochs are ordered
    int blockNum = 1, workers = 1;           // workers: cores that run the kernel's vector code
    Costs costs;
    std::function<void()> syncAll;

    GlobalRegion& Find(const void* address) {
        for (GlobalRegion& region : regions) {
            const auto* byte = static_cast<const std::uint8_t*>(address);
            if (byte >= region.begin && byte < region.begin + region.bytes) return region;
        }
        Fail("bounds", "a global address is in none of the kernel's tensors");
    }
};

class Core {
public:
    static constexpr std::size_t kCell = 4;  // bytes of the unified buffer per access record

    Core() : memory_(kChip.ub + 64), cells_(kChip.ub / kCell) {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
        ub_ = memory_.data() + (32 - address % 32) % 32;
    }

    void Restart(Device* device, int block) {
        device_ = device;
        block_ = block;
        pipes.Restart();
        pipes.SetCosts(device->costs[kDispatch], device->costs[kFullBarrier]);
        ubUsed = l1Used = l0cUsed = buffers = 0;
        eventsOf[0] = eventsOf[1] = 0;
        matmulObjects = tensorsOut = 0;
        activeMatmul = nullptr;
        counts.fill(0);
        for (std::size_t i = 0; i < kChip.ub; i += 2) {  // NaN as float16 and as float32
            ub_[i] = 0xff;
            ub_[i + 1] = 0x7f;
        }
    }

    std::uint8_t* Ub() { return ub_; }
    Device& device() { return *device_; }
    int block() const { return block_; }

    // Checks and records an access of instruction `seq` on `pipe` to bytes [offset, offset + bytes) of unified buffer.
    void TouchUb(std::size_t offset, std::size_t bytes, int pipe, std::uint32_t seq, bool write, const char* what) {
        const Clock& known = pipes.At(pipe);
        const std::size_t last = (offset + bytes - 1) / kCell;
        for (std::size_t i = offset / kCell; i <= last; ++i) {
            Cell& cell = cells_[i];
            if (cell.write > known[cell.writePipe] && cell.write != seq) {
                Race(what, write ? "overwrites" : "reads", i * kCell, pipe, cell.writePipe, "wrote");
            }
            if (write) {
                for (int q = 0; q < kPipes; ++q) {
                    if (cell.read[q] > known[q] && cell.read[q] != seq) {
                        Race(what, "overwrites", i * kCell, pipe, q, "reads");
                    }
                }
                cell.write = seq;
                cell.writePipe = static_cast<std::uint8_t>(pipe);
            } else {
                if (cell.write <= pipes.Start()) {
                    Fail("uninitialised", "%s reads unified buffer byte %zu, which this kernel has not written", what,
                         i * kCell);
                }
                cell.read[pipe] = seq;
            }
        }
    }

    // Checks and records an access of instruction `seq` on `pipe` to bytes [offset, offset + bytes) of `region`.
    void TouchGlobal(GlobalRegion& region, std::size_t offset, std::size_t bytes, int pipe, std::uint32_t seq,
                     bool write, const char* what) {
        if (bytes == 0) return;
        if (write && !region.writable) {
            Fail("readonly", "%s writes to %s, which is an input of the operator", what, region.name.c_str());
        }
        const Clock& known = pipes.At(pipe);
        const std::uint32_t epoch = device_->epoch;
        const std::size_t last = (offset + bytes - 1) / 32;
        for (std::size_t i = offset / 32; i <= last; ++i) {
            GlobalRegion::Block& b = region.blocks[i];
            if (b.writeEpoch == epoch && b.writeCore != block_) {
                Fail("race", "core %d: %s accesses %s byte %zu, which core %d writes without a SyncAll between", block_,
                     what, region.name.c_str(), i * 32, b.writeCore);
            }
            if (b.writeEpoch == epoch && b.write > known[b.writePipe] && b.write != seq) {
                RaceGlobal(what, write ? "overwrites" : "reads", region, i * 32, pipe, b.writePipe, "wrote");
            }
            if (write) {
                if (b.readEpoch == epoch && b.readCore != block_) {
                    Fail("race", "core %d: %s writes %s byte %zu, which another core reads without a SyncAll between",
                         block_, what, region.name.c_str(), i * 32);
                }
                for (int q = 0; b.readEpoch == epoch && q < kPipes; ++q) {
                    if (b.read[q] > known[q] && b.read[q] != seq) {
                        RaceGlobal(what, "overwrites", region, i * 32, pipe, q, "reads");
                    }
                }
                b.write = seq;
                b.writePipe = static_cast<std::uint8_t>(pipe);
                b.writeCore = block_;
                b.writeEpoch = epoch;
            } else {
                if (region.fresh && b.writeEpoch < device_->launchEpoch) {
                    Fail("uninitialised", "%s reads byte %zu of %s, which this launch has not written", what, i * 32,
                         region.name.c_str());
                }
                if (b.readEpoch != epoch) {
                    b.readEpoch = epoch;
                    b.readCore = block_;
                    for (std::uint32_t& read : b.read) read = 0;
                } else if (b.readCore != block_) {
                    b.readCore = GlobalRegion::kSeveralCores;
                }
                b.read[pipe] = seq;
            }
        }
    }

    // Issues a vector instruction of `repeats` repeats.
    std::uint32_t IssueVector(std::size_t repeats) {
        ++counts[kVectorInstructions];
        counts[kVectorRepeats] += static_cast<std::int64_t>(repeats);
        return pipes.Issue(PIPE_V, Cycles(kVectorInstruction, 1, kVectorRepeat, repeats), Cycles(kVectorLatency, 1));
    }

    // Issues an access of the scalar unit, which waits for it.
    std::uint32_t IssueScalar(bool global) {
        ++counts[kScalarAccesses];
        return pipes.Issue(PIPE_S, global ? Cycles(kMemoryLatency, 1) : Ends{});
    }

    // Issues a copy between global and local memory.
    std::uint32_t IssueCopy(int pipe, std::size_t bursts, std::size_t bytes) {
        counts[pipe == PIPE_MTE2 ? kLoadBursts : kStoreBursts] += static_cast<std::int64_t>(bursts);
        counts[pipe == PIPE_MTE2 ? kLoadBytes : kStoreBytes] += static_cast<std::int64_t>(bursts * bytes);
        return pipes.Issue(pipe, Cycles(kCopyInstruction, 1, kCopyBurst, bursts,
                                        pipe == PIPE_MTE2 ? kLoadByte : kStoreByte, bursts * bytes),
                           Cycles(kMemoryLatency, 1));
    }

    // The cycles of `count` times each cost.
    template <class... Rest>
    Ends Cycles(Cost cost, double count, Rest... rest) const {
        return device_->costs.Of(cost, count, rest...);
    }

    Pipelines pipes;
    Counts counts{};
    std::size_t ubUsed = 0, l1Used = 0, l0cUsed = 0;
    int buffers = 0;
    int eventsOf[2] = {0, 0};  // queue buffers at positions VECIN and VECOUT; each needs an event
    int matmulObjects = 0;
    int tensorsOut = 0;        // queue tensors that are allocated and not freed
    const void* activeMatmul = nullptr;

private:
    struct Cell {
        std::uint32_t write = 0, read[kPipes] = {};
        std::uint8_t writePipe = 0;
    };

    [[noreturn]] void Race(const CheckSite& what, const char* verb, std::size_t byte, int pipe, int other,
                           const char* did) {
        Fail({"race", what.file, what.line}, "core %d: %s on the %s pipe %s unified buffer byte %zu, which the %s pipe "
             "%s: no flag, queue or barrier orders them", block_, what.word, PipeName(pipe), verb, byte,
             PipeName(other), did);
    }

    [[noreturn]] void RaceGlobal(const CheckSite& what, const char* verb, const GlobalRegion& region, std::size_t byte,
                                 int pipe, int other, const char* did) {
        Fail({"race", what.file, what.line}, "core %d: %s on the %s pipe %s %s byte %zu, which the %s pipe %s: no "
             "flag, queue or barrier orders them", block_, what.word, PipeName(pipe), verb, region.name.c_str(),
             byte, PipeName(other), did);
    }

    std::vector<std::uint8_t> memory_;
    std::vector<Cell> cells_;
    std::uint8_t* ub_ = nullptr;
    Device* device_ = nullptr;
    int block_ = 0;
};

inline thread_local Core* tCore = nullptr;  // the core that the current thread simulates

inline Core& CurrentCore() { return *tCore; }

// The repeats of an instruction on `bytes` consecutive bytes.
constexpr std::size_t RepeatsOf(std::size_t bytes) { return (bytes + 255) / 256; }

}  // namespace standin

#endif
