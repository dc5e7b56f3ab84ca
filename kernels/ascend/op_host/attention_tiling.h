// Plans the attention kernels for a chip: plain C++ over shapes, attributes and the chip's limits.
//
// This header includes nothing of CANN, so the tests run the same functions. The operator's tiling function
// (fused_attention.cpp) reads the limits from the platform, calls these functions, and adds Matmul's own tiling.
#ifndef EDGELLAMA_ATTENTION_TILING_H
#define EDGELLAMA_ATTENTION_TILING_H

#include "cube_plan.h"

namespace edgellama {

// The dimensions of kernels/reference.py: rows B, tokens S, heads H, groups G, headDim D, capacity C, positions P.
// All must be known (not -1).
struct AttentionShape {
    int64_t rows, tokens, width;  // qkv [B, S, width]
    int64_t heads, groups, headDim, capacity, positions;
    int64_t window;  // 0: off
    float scale;
    int64_t parts = 1;  // work items of decode per row and key/value head
    bool split = false; // SplitAttention, which has at least two parts
};

// The fields have the meaning of DecodeTiling. ubBytes: unified buffer of one core, matmulBytes included; blocks: the
// block dimension of the launch.
struct DecodePlan {
    int64_t columns, weightRows, workers, blocks, matmulBytes, ubBytes;
    int64_t workspaceBytes;  // per worker
    CubePlan qk, pv;
};

// The fields have the meaning of PrefillTiling. ubBytes: unified buffer of one core, matmulBytes included; blocks: the
// block dimension of the launch.
struct PrefillPlan {
    int64_t tileTokens, queries, keys, prepareTokens, tailRows, workers, blocks, matmulBytes, ubBytes;
    int64_t workspaceBytes;  // per worker
    CubePlan qk, pv;
};

constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kMaxRatio = 32;       // query heads per key/value head
constexpr int64_t kLanes = 64;          // floats per vector repeat
constexpr int64_t kRowBytes = 32;       // bytes per row of a row8 (op_kernel/vector_ops.h)
constexpr int64_t kMaxParts = 64;

// Checks the shapes and attributes. Returns an error message that starts with the operator's name, or an empty string.
inline std::string CheckShape(const AttentionShape& s, const std::string& name) {
    const auto text = [](int64_t value) { return std::to_string(value); };
    if (s.rows < 1 || s.tokens < 1) {
        return name + ": qkv has " + text(s.rows) + " rows of " + text(s.tokens) + " tokens; both must be at least 1";
    }
    if (s.heads < 1 || s.groups < 1 || s.heads % s.groups != 0) {
        return name + ": " + text(s.heads) + " query heads are not a multiple of " + text(s.groups) +
               " key/value heads";
    }
    if (s.heads / s.groups > kMaxRatio) {
        return name + ": " + text(s.heads / s.groups) + " query heads share a key/value head; at most " +
               text(kMaxRatio) + " can";
    }
    if (s.headDim < kFractal || s.headDim > kMaxHeadDim || s.headDim % kFractal != 0) {
        return name + ": head size " + text(s.headDim) + " is not a multiple of 16 up to " + text(kMaxHeadDim);
    }
    if (s.width != (s.heads + 2 * s.groups) * s.headDim) {
        return name + ": qkv is " + text(s.width) + " wide, (heads + 2 * key/value heads) * head size is " +
               text((s.heads + 2 * s.groups) * s.headDim);
    }
    if (s.capacity < s.tokens) {
        return name + ": the cache holds " + text(s.capacity) + " positions, fewer than the " + text(s.tokens) +
               " tokens of this bucket. Export with a larger context or without this bucket";
    }
    if (s.positions < s.capacity) {
        return name + ": the rotary tables have " + text(s.positions) + " positions, the cache " + text(s.capacity);
    }
    if (s.window < 0) return name + ": window is " + text(s.window) + "; it must be 0 (off) or positive";
    if (!(s.scale > 0.0f)) return name + ": scale must be positive";
    if (s.split && (s.parts < 2 || s.parts > kMaxParts)) {
        return name + ": parts is " + text(s.parts) + "; it must be 2 to " + text(kMaxParts);
    }
    if (s.width > 65535 * kFractal) {
        return name + ": qkv is " + text(s.width) + " wide; a strided copy allows at most " + text(65535 * kFractal);
    }
    return "";
}

// --- decode ---

constexpr int64_t kWide = 512;         // WIDE of op_kernel/wide_softmax.h
constexpr int64_t kMostScores = 16384;  // of a step, for all query heads; more need no fewer instructions a score

// Bytes of unified buffer that DecodeAttention::Init reserves, in the same order. ratio: query heads per key/value
// head.
inline int64_t DecodeUb(int64_t ratio, int64_t dim, const DecodePlan& plan) {
    const int64_t scores = ratio * plan.columns, width = ratio * dim, prepared = std::min(ratio + 1, 2048 / dim);
    const int64_t steps = scores * 4 + plan.weightRows * plan.columns * 2 + 2 * width * 4 + width * 2 + width * 4 +
                          (7 * ratio * 8 + 4 * ratio * (plan.columns / kLanes)) * 4 + kFractal * 4;
    const int64_t token = 2 * prepared * dim * 2 + dim * 4 + 2 * kFractal * dim * 2 +
                          prepared * (2 * dim + kLanes) * 4 + kFractal * dim * 2;
    return steps + token + plan.matmulBytes;
}

// Plans the products of steps of plan->columns scores. `block` is the elements of a block of keys or values: as many as
// L0B can hold twice, or fewer. L1 holds two blocks, so that the cube works on one while the next one is loaded.
inline void PlanDecodeProducts(const AttentionShape& s, const ChipLimits& chip, int64_t block, DecodePlan* plan) {
    const int64_t ratio = s.heads / s.groups, dim = s.headDim, rows = CeilTo(ratio, kFractal);
    const int64_t keys = std::max(kFractal, block / std::min<int64_t>(dim, 128) / kFractal * kFractal);
    plan->qk = PlanCube(ratio, plan->columns, dim, rows, std::min<int64_t>({plan->columns, keys, 256}), true, chip);
    plan->pv = PlanCube(ratio, dim, plan->columns, rows, dim, false, chip);
    plan->pv.baseK = std::min(plan->pv.baseK, std::max(kFractal, block / dim / kFractal * kFractal));
    plan->pv.stepK = 1;
    plan->qk.depth = plan->pv.depth = 2;
    plan->qk.l1 = plan->pv.l1 = chip.l1 / 2;
    plan->qk.l0c = CubeL0c(plan->qk);
    plan->pv.l0c = chip.l0c - plan->qk.l0c;
    plan->matmulBytes = chip.matmulNeedsUb ? std::max(CubeUb(plan->qk), CubeUb(plan->pv)) : 0;
    plan->qk.ub = plan->pv.ub = plan->matmulBytes;
}

// Plans one token per row: s.tokens is 1. The steps are the longest that fit, with the largest blocks, and the weights
// of all query heads at a time; then with smaller ones. Returns an error message, or an empty string on success.
inline std::string PlanDecode(const AttentionShape& s, const ChipLimits& chip, const std::string& name,
                              DecodePlan* plan) {
    const std::string problem = CheckShape(s, name);
    if (!problem.empty()) return problem;
    const int64_t ratio = s.heads / s.groups, most = CeilTo(s.capacity + kFractal, kWide);
    const int64_t wanted = std::min<int64_t>({4096, kMostScores / ratio / kWide * kWide, most});
    plan->workers = std::min(chip.vectorCores, s.rows * s.groups * s.parts);
    PlanBlocks(chip, &plan->workers, &plan->blocks);
    for (plan->columns = std::max(kWide, wanted); plan->columns >= kWide; plan->columns -= kWide) {
        for (int64_t divisor = 1; divisor <= 8; divisor *= 2) {
            plan->weightRows = CeilDiv(ratio, divisor);
            PlanDecodeProducts(s, chip, chip.l0b / 4 / divisor, plan);
            plan->ubBytes = DecodeUb(ratio, s.headDim, *plan);
            if (plan->ubBytes > chip.ub - kUbMargin || !CubeFits(plan->qk) || !CubeFits(plan->pv)) continue;
            const int64_t scores = ratio * plan->columns;
            plan->workspaceBytes = CeilTo(2 * (ratio + 2 * kFractal) * s.headDim * 2 + scores * 2 + 2 * scores * 4 +
                                          4 * ratio * s.headDim * 4, 512);
            return "";
        }
    }
    return name + ": no step of head size " + std::to_string(s.headDim) + " with " + std::to_string(ratio) +
           " query heads a key/value head fits the chip's local memory";
}

// --- prefill ---

// Bytes of unified buffer that PrefillAttention::Init reserves, in the same order.
inline int64_t PrefillUb(int64_t ratio, int64_t dim, int64_t queries, int64_t keys, int64_t prepareTokens,
                         int64_t matmulBytes) {
    const int64_t wide = std::max(keys, dim), prepareRows = prepareTokens * ratio;
    const int64_t queues = prepareRows * dim * 2 + prepareTokens * dim * 4 +
                           std::max(prepareTokens, kFractal) * dim * 2 + queries * wide * 4 + queries * wide * 2;
    const int64_t scratch = std::max(prepareRows * (2 * dim + kLanes), queries * kLanes) * 4;
    return queues + queries * dim * 4 + scratch + 7 * queries * kRowBytes + queries * kRowBytes + 2 * keys * 4 +
           std::max(kFractal, ratio) * dim * 2 + matmulBytes;
}

// Plans a score matrix of `queries` rows and `keys` columns. Returns false if it does not fit the chip.
inline bool PlanTile(const AttentionShape& s, const ChipLimits& chip, int64_t queries, int64_t keys,
                     PrefillPlan* plan) {
    const int64_t ratio = s.heads / s.groups, dim = s.headDim;
    plan->queries = queries;
    plan->keys = keys;
    plan->tileTokens = std::min(s.tokens, queries / ratio);
    plan->prepareTokens = std::min(plan->tileTokens, std::max<int64_t>(1, (dim > 128 ? 16 : 32) / ratio));
    plan->qk = PlanCube(queries, keys, dim, queries, keys, true, chip);
    plan->pv = PlanCube(queries, dim, keys, queries, dim, false, chip);
    plan->qk.l1 = plan->pv.l1 = chip.l1 / 2;
    plan->qk.l0c = CubeL0c(plan->qk);  // qk gets only what it needs: for a wide head, pv needs more than half of L0C
    plan->pv.l0c = chip.l0c - plan->qk.l0c;
    plan->matmulBytes = chip.matmulNeedsUb ? std::max(CubeUb(plan->qk), CubeUb(plan->pv)) : 0;
    plan->qk.ub = plan->pv.ub = plan->matmulBytes;
    plan->ubBytes = PrefillUb(ratio, dim, queries, keys, plan->prepareTokens, plan->matmulBytes);
    return plan->ubBytes <= chip.ub - kUbMargin && CubeFits(plan->qk) && CubeFits(plan->pv);
}

// Selects the widest tile that has 64 rows, or all rows if there are fewer, so that the cube is full. If none fits, it
// selects the tile with the most rows. A tile has up to 128 rows if each core then gets at least four, else up to 64,
// so that the cores can share the work evenly. Returns false if no tile fits the chip.
inline bool PlanTiles(const AttentionShape& s, const ChipLimits& chip, PrefillPlan* plan) {
    const int64_t least = CeilTo(s.heads / s.groups, kFractal);
    const int64_t rows = CeilTo(s.tokens * (s.heads / s.groups), kFractal);
    const int64_t wanted = s.rows * s.groups * rows < 4 * 128 * chip.vectorCores ? 64 : 128;
    const int64_t most = std::max(least, std::min<int64_t>(wanted, rows));
    PrefillPlan best{};
    for (int64_t keys : {128, 64, 32}) {
        for (int64_t queries = most; queries >= least; queries -= kFractal) {
            PrefillPlan candidate{};
            if (!PlanTile(s, chip, queries, keys, &candidate)) continue;
            if (queries > best.queries) best = candidate;
            break;
        }
        if (best.queries >= std::min<int64_t>(64, most)) break;
    }
    *plan = best;
    return best.queries > 0;
}

// Plans several tokens per row. Returns an error message, or an empty string on success.
inline std::string PlanPrefill(const AttentionShape& s, const ChipLimits& chip, const std::string& name,
                               PrefillPlan* plan) {
    const std::string problem = CheckShape(s, name);
    if (!problem.empty()) return problem;
    if (!PlanTiles(s, chip, plan)) {
        return name + ": no tile of head size " + std::to_string(s.headDim) + " with " +
               std::to_string(s.heads / s.groups) + " query heads a key/value head fits the chip's local memory";
    }
    const int64_t items = s.rows * s.groups * CeilDiv(s.tokens, plan->tileTokens);
    plan->workers = std::min(chip.vectorCores, items);
    PlanBlocks(chip, &plan->workers, &plan->blocks);
    plan->tailRows = CeilTo(s.tokens + kFractal - 1, kFractal);
    const int64_t d = s.headDim, q = plan->queries, k = plan->keys;
    plan->workspaceBytes = CeilTo(2 * plan->tailRows * d * 2 + q * d * 2 + q * k * 2 + q * k * 4 + q * d * 4, 512);
    return "";
}

}  // namespace edgellama

#endif
