// The tiling functions for ctypes. They do what the operators' tiling functions do on a host with CANN, but replace
// Matmul's own tiling by the plan's base blocks.
#include <cstdio>
#include <cstring>
#include <vector>

#include "../op_host/tiling_fill.h"
#include "standin/chip.h"

namespace {

using namespace edgellama;

AscendC::tiling::TCubeTiling Cube(const CubePlan& p) {
    AscendC::tiling::TCubeTiling t{};
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    t.usedCoreNum = 1;
    t.M = t.singleCoreM = narrow(p.m);
    t.N = narrow(p.rowN);
    t.singleCoreN = narrow(p.n);
    t.Ka = t.Kb = t.singleCoreK = narrow(p.k);
    t.baseM = narrow(p.baseM);
    t.baseN = narrow(p.baseN);
    t.baseK = narrow(p.baseK);
    t.stepM = t.stepN = 1;
    t.stepKa = t.stepKb = narrow(p.stepK);
    t.depthA1 = t.depthB1 = narrow(p.stepK * p.depth);
    t.dbL0A = t.dbL0B = 2;
    t.dbL0C = 1;
    t.transLength = narrow(CubeUb(p) / 2);
    return t;
}

// Returns the error that Matmul's own tiling would report for products that are in use at the same time, or an empty
// string. A block must fit the L1 and L0C of its product, and the products together must fit the chip.
std::string Refused(const std::vector<CubePlan>& products, const ChipLimits& chip, const std::string& name) {
    int64_t l1 = 0, l0c = 0;
    for (const CubePlan& p : products) {
        if (p.baseM * p.baseN * 4 > p.l0c || (p.baseM + p.baseN) * p.baseK * 2 > p.l1) {
            return name + ": Matmul finds no tiling for " + std::to_string(p.m) + " x " + std::to_string(p.n) + " x " +
                   std::to_string(p.k) + " in " + std::to_string(p.l1) + " bytes of L1, " + std::to_string(p.l0c) +
                   " of L0C";
        }
        l1 += p.l1;
        l0c += p.l0c;
    }
    if (l1 <= chip.l1 && l0c <= chip.l0c) return "";
    return name + ": the products need " + std::to_string(l1) + " bytes of L1 and " + std::to_string(l0c) +
           " of L0C, the chip has " + std::to_string(chip.l1) + " and " + std::to_string(chip.l0c);
}

// v: rows, tokens, width, heads, groups, headDim, capacity, positions, window.
AttentionShape Shape(const int64_t* v, float scale, bool split) {
    return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], scale, split ? v[9] : 1, split};
}

// v: UB, L1, L0A, L0B, L0C, cube cores, vector cores, as standin_chip writes them.
ChipLimits Limits(const int64_t* v) {
    return {standin::kChip.splitCores, standin::kChip.matmulNeedsUb, v[5], v[6], v[0], v[1], v[2], v[3], v[4],
            SkippedWorkspace(standin::kChip.arch == 2002)};
}

struct Summary {  // standin.py reads it
    int64_t key, blocks, workers, workspaceBytes, ubBytes, tilingBytes, details[8];
};

// The bytes that an operator's tiling function reserves (SetLaunch of op_host/host.h).
int64_t Reserved(const ChipLimits& chip, int64_t kernelBytes) {
    return WorkspaceBytes(chip, kernelBytes, static_cast<int64_t>(standin::kChip.libraryWorkspace));
}

int Fail(const std::string& problem, char* message, size_t bytes) {
    std::snprintf(message, bytes, "%s", problem.c_str());
    return 1;
}

int Decode(const std::string& name, const AttentionShape& shape, const ChipLimits& chip, DecodeTiling* tiling,
           Summary* summary, char* message, size_t bytes) {
    DecodePlan plan;
    std::string problem = PlanDecode(shape, chip, name, &plan);
    if (problem.empty()) problem = Refused({plan.qk, plan.pv}, chip, name);
    if (!problem.empty()) return Fail(problem, message, bytes);
    Fill(shape, plan, tiling);
    tiling->qk = Cube(plan.qk);
    tiling->pv = Cube(plan.pv);
    *summary = {ATTENTION_KEY_DECODE, plan.blocks, plan.workers,
                Reserved(chip, plan.workers * plan.workspaceBytes), plan.ubBytes, sizeof(AttentionTiling),
                {plan.columns, plan.qk.baseN, plan.pv.baseK, plan.matmulBytes}};
    return 0;
}

int Prefill(const std::string& name, const AttentionShape& shape, const ChipLimits& chip, PrefillTiling* tiling,
            Summary* summary, char* message, size_t bytes) {
    PrefillPlan plan;
    std::string problem = PlanPrefill(shape, chip, name, &plan);
    if (problem.empty()) problem = Refused({plan.qk, plan.pv}, chip, name);
    if (!problem.empty()) return Fail(problem, message, bytes);
    Fill(shape, plan, tiling);
    tiling->qk = Cube(plan.qk);
    tiling->pv = Cube(plan.pv);
    *summary = {ATTENTION_KEY_PREFILL, plan.blocks, plan.workers,
                Reserved(chip, plan.workers * plan.workspaceBytes), plan.ubBytes, sizeof(AttentionTiling),
                {plan.keys, plan.queries, plan.tileTokens, plan.prepareTokens,
                                          plan.qk.baseK, plan.pv.baseK, plan.matmulBytes, plan.tailRows}};
    return 0;
}

int Attention(const std::string& name, const AttentionShape& shape, const ChipLimits& chip, void* tiling,
              void* summary, char* message, size_t bytes) {
    static_assert(sizeof(AttentionTiling) <= 2048);
    auto* data = static_cast<AttentionTiling*>(tiling);
    auto* out = static_cast<Summary*>(summary);
    if (shape.tokens == 1) return Decode(name, shape, chip, &data->decode, out, message, bytes);
    return Prefill(name, shape, chip, &data->prefill, out, message, bytes);
}

}  // namespace

extern "C" {

// These plan an operator into `tiling` (at least 2048 bytes). They return 0, or 1 with a message.

// shape: as Shape reads it, for SplitAttention with the parts at the end.
int plan_fused_attention(const int64_t* shape, float scale, const int64_t* chip, void* tiling, void* summary,
                         char* message, size_t bytes) {
    return Attention("FusedAttention", Shape(shape, scale, false), Limits(chip), tiling, summary, message, bytes);
}

int plan_split_attention(const int64_t* shape, float scale, const int64_t* chip, void* tiling, void* summary,
                         char* message, size_t bytes) {
    return Attention("SplitAttention", Shape(shape, scale, true), Limits(chip), tiling, summary, message, bytes);
}

// shape: rows, tokens and width of out; key/value heads, parts and record size of partial. The unused float gives all
// planning functions the same signature.
int plan_join_attention(const int64_t* shape, float, const int64_t* chip, void* tiling, void* summary, char* message,
                        size_t bytes) {
    static_assert(sizeof(JoinTiling) <= 2048);
    const JoinShape s{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]};
    JoinPlan plan;
    const std::string problem = PlanJoin(s, Limits(chip), "JoinAttention", &plan);
    if (!problem.empty()) return Fail(problem, message, bytes);
    Fill(s, plan, static_cast<JoinTiling*>(tiling));
    *static_cast<Summary*>(summary) = {s.tokens == 1 ? ATTENTION_KEY_DECODE : ATTENTION_KEY_PREFILL, plan.workers,
                                       plan.workers, Reserved(Limits(chip), 0), plan.ubBytes, sizeof(JoinTiling),
                                       {plan.chunk}};
    return 0;
}

// shape: rows, hidden size, vocabulary.
int plan_lm_head(const int64_t* shape, float, const int64_t* chip, void* tiling, void* summary, char* message,
                 size_t bytes) {
    static_assert(sizeof(LmHeadTiling) <= 2048);
    const LmHeadShape s{shape[0], shape[1], shape[2]};
    LmHeadPlan plan;
    std::string problem = PlanLmHead(s, Limits(chip), "LmHead", &plan);
    if (problem.empty()) problem = Refused({plan.product}, Limits(chip), "LmHead");
    if (!problem.empty()) return Fail(problem, message, bytes);
    auto* data = static_cast<LmHeadTiling*>(tiling);
    Fill(s, plan, data);
    data->product = Cube(plan.product);
    *static_cast<Summary*>(summary) = {0, plan.blocks, plan.workers, Reserved(Limits(chip), 0), plan.matmulBytes,
                                       sizeof(LmHeadTiling),
                                       {plan.columns, plan.product.baseK, plan.product.stepK}};
    return 0;
}

// shape: rows, inputs, panels, bytes of a panel, bits, group, wide.
int plan_quant_linear(const int64_t* shape, float, const int64_t* chip, void* tiling, void* summary, char* message,
                      size_t bytes) {
    static_assert(sizeof(QuantLinearTiling) <= 2048);
    const QuantLinearShape s{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6]};
    const ChipLimits limits = Limits(chip);
    QuantLinearPlan plan;
    std::string problem = PlanQuantLinear(s, limits, standin::kChip.mulAddDstMixed, "QuantLinear", &plan);
    const bool few = problem.empty() && plan.key == QUANT_KEY_ROWS;
    if (problem.empty() && !few) problem = Refused({plan.product}, limits, "QuantLinear");
    if (!problem.empty()) return Fail(problem, message, bytes);
    auto* data = static_cast<QuantLinearTiling*>(tiling);
    *data = QuantLinearTiling();
    Fill(s, plan, data);
    if (!few) data->product = Cube(plan.product);
    *static_cast<Summary*>(summary) = {plan.key, plan.blocks, plan.workers,
                                       Reserved(limits, plan.workers * plan.workspaceBytes), plan.ubBytes,
                                       sizeof(QuantLinearTiling),
                                       {plan.tilePanels, plan.tileInputs, plan.panels, plan.blockPanels}};
    return 0;
}

}  // extern "C"
