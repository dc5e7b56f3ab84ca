// Copies plans into the structures that the kernels read. The operators and the tests share it. Of CANN it needs only
// the layout of TCubeTiling.
#ifndef EDGELLAMA_TILING_FILL_H
#define EDGELLAMA_TILING_FILL_H

#include "../op_kernel/attention_tiling_data.h"
#include "../op_kernel/lm_head_tiling_data.h"
#include "attention_tiling.h"
#include "join_tiling.h"
#include "lm_head_tiling.h"
#include "quant_linear_tiling.h"

namespace edgellama {

inline AttentionSizes Sizes(const AttentionShape& s) {
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    return {narrow(s.rows), narrow(s.tokens), narrow(s.heads), narrow(s.groups), narrow(s.headDim),
            narrow(s.capacity), narrow(s.positions), narrow(s.window), s.scale, 0};
}

// The caller sets qk and pv.
inline void Fill(const AttentionShape& s, const DecodePlan& plan, DecodeTiling* out) {
    out->sizes = Sizes(s);
    out->columns = static_cast<int32_t>(plan.columns);
    out->parts = static_cast<int32_t>(s.parts);
    out->workers = static_cast<int32_t>(plan.workers);
    out->matmulBytes = static_cast<int32_t>(plan.matmulBytes);
    out->weightRows = static_cast<int32_t>(plan.weightRows);
    out->reserved = 0;
    out->workspaceBytes = plan.workspaceBytes;
    out->end = 0;
}

// The caller sets qk and pv.
inline void Fill(const AttentionShape& s, const PrefillPlan& plan, PrefillTiling* out) {
    out->sizes = Sizes(s);
    out->tileTokens = static_cast<int32_t>(plan.tileTokens);
    out->queries = static_cast<int32_t>(plan.queries);
    out->keys = static_cast<int32_t>(plan.keys);
    out->prepareTokens = static_cast<int32_t>(plan.prepareTokens);
    out->tailRows = static_cast<int32_t>(plan.tailRows);
    out->workers = static_cast<int32_t>(plan.workers);
    out->matmulBytes = static_cast<int32_t>(plan.matmulBytes);
    out->reserved = 0;
    out->workspaceBytes = plan.workspaceBytes;
    out->end = 0;
}

inline void Fill(const JoinShape& s, const JoinPlan& plan, JoinTiling* out) {
    out->heads = static_cast<int32_t>(s.rows * s.groups);
    out->ratio = static_cast<int32_t>(plan.ratio);
    out->headDim = static_cast<int32_t>(plan.headDim);
    out->parts = static_cast<int32_t>(s.parts);
    out->workers = static_cast<int32_t>(plan.workers);
    out->chunk = static_cast<int32_t>(plan.chunk);
    out->elements = s.rows * s.tokens * s.width;
}

// The caller sets product.
inline void Fill(const LmHeadShape& s, const LmHeadPlan& plan, LmHeadTiling* out) {
    out->rows = static_cast<int32_t>(s.rows);
    out->hidden = static_cast<int32_t>(s.hidden);
    out->vocabulary = static_cast<int32_t>(s.vocabulary);
    out->columns = static_cast<int32_t>(plan.columns);
    out->matmulBytes = static_cast<int32_t>(plan.matmulBytes);
    out->reserved = 0;
    out->end = 0;
}

// The caller sets product, with tiles.
inline void Fill(const QuantLinearShape& s, const QuantLinearPlan& plan, QuantLinearTiling* out) {
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    out->rows = narrow(s.rows);
    out->inputs = narrow(s.inputs);
    out->columns = narrow(s.panels * kFractal);
    out->bits = narrow(s.bits);
    out->group = narrow(s.group);
    out->wide = narrow(s.wide);
    out->panelBytes = narrow(s.panelBytes);
    out->panels = narrow(plan.panels);
    out->blockPanels = narrow(plan.blockPanels);
    out->tilePanels = narrow(plan.tilePanels);
    out->tileInputs = narrow(plan.tileInputs);
    out->matmulBytes = narrow(plan.matmulBytes);
    out->integerBytes = narrow(plan.integerBytes);
    out->scaleBytes = narrow(plan.scaleBytes);
    out->zeroBytes = narrow(plan.zeroBytes);
    out->halfBytes = narrow(plan.halfBytes);
    out->operandBytes = narrow(plan.operandBytes);
    out->spreadBytes = narrow(plan.spreadBytes);
    out->workspaceBytes = plan.workspaceBytes;
    out->end = 0;
}

}  // namespace edgellama

#endif
