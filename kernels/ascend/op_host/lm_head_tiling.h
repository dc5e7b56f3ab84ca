// Plans the product of LmHead for a chip: plain C++ over shapes and the chip's limits, without CANN's headers.
#ifndef EDGELLAMA_LM_HEAD_TILING_H
#define EDGELLAMA_LM_HEAD_TILING_H

#include "cube_plan.h"

namespace edgellama {

struct LmHeadShape {
    int64_t rows, hidden, vocabulary;  // x [rows, hidden], weight [vocabulary, hidden]
};

struct LmHeadPlan {
    int64_t columns;  // vocabulary entries per worker, a multiple of 16
    int64_t workers, blocks;
    int64_t matmulBytes;  // unified buffer for Matmul (310P only, else 0)
    CubePlan product;
};

constexpr int64_t kMaxHidden = 65535;  // Matmul's limit for the rows of a transposed matrix in global memory

// Checks the shapes. Returns an error message that starts with the operator's name, or an empty string.
inline std::string CheckShape(const LmHeadShape& s, const std::string& name) {
    const auto text = [](int64_t value) { return std::to_string(value); };
    if (s.rows < 1) return name + ": x has " + text(s.rows) + " rows; it needs at least 1";
    if (s.hidden < kFractal || s.hidden > kMaxHidden || s.hidden % kFractal != 0) {
        return name + ": the hidden size " + text(s.hidden) + " is not a multiple of 16 up to " + text(kMaxHidden);
    }
    if (s.vocabulary < kFractal || s.vocabulary % kFractal != 0) {
        return name + ": the vocabulary of " + text(s.vocabulary) + " is not a multiple of 16";
    }
    return "";
}

// Gives each core about the same number of columns, in whole blocks if there are enough. Matmul reads K block by block
// (stepK), because the rows of a head are long and each weight is used once. Returns an error message, or an empty
// string on success.
inline std::string PlanLmHead(const LmHeadShape& s, const ChipLimits& chip, const std::string& name, LmHeadPlan* plan) {
    const std::string problem = CheckShape(s, name);
    if (!problem.empty()) return problem;
    constexpr int64_t kColumns = 128, kMaxRows = 128, kStepK = 4;
    const int64_t share = CeilDiv(s.vocabulary, chip.vectorCores);
    plan->columns = std::min(s.vocabulary, CeilTo(share, share > 4 * kColumns ? kColumns : kFractal));
    plan->workers = CeilDiv(s.vocabulary, plan->columns);
    PlanBlocks(chip, &plan->workers, &plan->blocks);
    const int64_t baseM = std::min(CeilTo(s.rows, kFractal), kMaxRows), baseN = std::min(plan->columns, kColumns);
    plan->product = PlanCube(s.rows, plan->columns, s.hidden, baseM, baseN, true, chip);
    plan->product.rowN = s.vocabulary;
    plan->product.stepK = std::min(plan->product.stepK, kStepK);
    plan->product.ub = plan->matmulBytes = chip.matmulNeedsUb ? chip.ub - kUbMargin : 0;  // no other user
    if (!CubeFits(plan->product)) {
        return name + ": a block of " + std::to_string(baseM) + " x " + std::to_string(baseN) +
               " does not fit the chip's local memory";
    }
    return "";
}

}  // namespace edgellama

#endif
