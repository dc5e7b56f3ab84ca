// Plans JoinAttention for a chip: plain C++ over shapes and the chip's limits, without CANN's headers.
#ifndef EDGELLAMA_JOIN_TILING_H
#define EDGELLAMA_JOIN_TILING_H

#include "cube_plan.h"

namespace edgellama {

// out [rows, tokens, width] and partial [rows, groups, parts, record]; record = ratio * (head size + 16).
struct JoinShape {
    int64_t rows, tokens, width, groups, parts, record;
};

struct JoinPlan {
    int64_t ratio, headDim, chunk, workers, ubBytes;
};

// Finds the query heads per key/value head, and the head size, and checks the shapes. Returns an error message that
// starts with the operator's name, or an empty string.
inline std::string CheckShape(const JoinShape& s, const std::string& name, JoinPlan* plan) {
    const auto text = [](int64_t value) { return std::to_string(value); };
    if (s.rows < 1 || s.tokens < 1) {
        return name + ": out has " + text(s.rows) + " rows of " + text(s.tokens) + " tokens; both must be at least 1";
    }
    const int64_t each = s.groups > 0 && s.width % s.groups == 0 ? s.width / s.groups : 0;
    plan->ratio = each > 0 && s.record > each && (s.record - each) % kFractal == 0 ? (s.record - each) / kFractal : 0;
    plan->headDim = plan->ratio > 0 && each % plan->ratio == 0 ? each / plan->ratio : 0;
    if (plan->headDim < kFractal || plan->headDim % kFractal != 0 || s.parts < 1) {
        return name + ": out is " + text(s.width) + " wide, partial has " + text(s.groups) + " heads of " +
               text(s.parts) + " records of " + text(s.record) + "; SplitAttention does not write these";
    }
    return "";
}

// Plans the join (one token per row) or the copy (several). Returns an error message, or an empty string on success.
inline std::string PlanJoin(const JoinShape& s, const ChipLimits& chip, const std::string& name, JoinPlan* plan) {
    const std::string problem = CheckShape(s, name, plan);
    if (!problem.empty()) return problem;
    const int64_t elements = s.rows * s.tokens * s.width;
    plan->chunk = std::min<int64_t>(16384, CeilTo(CeilDiv(elements, chip.vectorCores), kFractal));
    plan->workers = std::min(chip.vectorCores, s.tokens == 1 ? s.rows * s.groups : CeilDiv(elements, plan->chunk));
    plan->ubBytes = s.tokens == 1 ? 3 * s.record * 4 + 2 * (s.width / s.groups) * 2 + 2 * plan->ratio * 32
                                  : 2 * plan->chunk * 2;
    if (plan->ubBytes <= chip.ub - kUbMargin) return "";
    return name + ": needs " + std::to_string(plan->ubBytes) + " bytes of unified buffer, the chip has " +
           std::to_string(chip.ub - kUbMargin);
}

}  // namespace edgellama

#endif
