// Plans QuantLinear for a chip: plain C++ over shapes and the chip's limits, without CANN's headers.
#ifndef EDGELLAMA_QUANT_LINEAR_TILING_H
#define EDGELLAMA_QUANT_LINEAR_TILING_H

#include "../op_kernel/quant_linear_tiling_data.h"
#include "cube_plan.h"

namespace edgellama {

// x [rows, inputs]; weight [panels, panelBytes], packed as kernels/ascend_format.py describes.
struct QuantLinearShape {
    int64_t rows, inputs, panels, panelBytes, bits, group, wide;
};

struct QuantLinearPlan {
    int64_t key;
    int64_t panels;                    // of a worker
    int64_t blockPanels;               // whose results a worker computes at a time
    int64_t tilePanels, tileInputs;    // of a tile
    int64_t workers, blocks;
    int64_t integerBytes, scaleBytes, zeroBytes, halfBytes, operandBytes, spreadBytes;
    int64_t matmulBytes, ubBytes;      // unified buffer: of Matmul (310P with tiles only, else 0), of all
    int64_t workspaceBytes;            // of a worker, for tiles
    CubePlan product;                  // for tiles
};

// The most rows that the vector unit multiplies. It takes its time for each of them; the cube multiplies any number of
// rows in the time of the way there. kernels/ascend/MODEL.md estimates both.
constexpr int64_t VectorRows(bool halfIntoFloat) { return halfIntoFloat ? 3 : 1; }
constexpr int64_t kSegment = 32;        // inputs of a segment
constexpr int64_t kMostInputs = 65535;  // Matmul's limit for the rows of a matrix in global memory

inline int64_t PanelBytes(const QuantLinearShape& s) {
    const int64_t groups = s.inputs / s.group;
    return groups * kFractal * 2 + (s.bits == 4 ? CeilTo(groups, 2) * kFractal : 0) + s.inputs * kFractal * s.bits / 8;
}

// Checks the shapes and attributes. Returns an error message that starts with the operator's name, or an empty string.
inline std::string CheckShape(const QuantLinearShape& s, const std::string& name) {
    const auto text = [](int64_t value) { return std::to_string(value); };
    if (s.bits != 4 && s.bits != 8) return name + ": weights of " + text(s.bits) + " bits; this package has 4 and 8";
    if (s.group != 32 && s.group != 64 && s.group != 128) {
        return name + ": groups of " + text(s.group) + " inputs; this package has 32, 64 and 128";
    }
    if (s.wide != 0 && s.wide != 1) return name + ": wide is " + text(s.wide) + "; it is 0 or 1";
    if (s.rows < 1 || s.panels < 1) {
        return name + ": x has " + text(s.rows) + " rows, the weight " + text(s.panels) + " panels; both need 1";
    }
    if (s.inputs < s.group || s.inputs > kMostInputs || s.inputs % s.group != 0) {
        return name + ": " + text(s.inputs) + " inputs are not a multiple of the group of " + text(s.group) +
               " up to " + text(kMostInputs);
    }
    if (s.panelBytes != PanelBytes(s)) {
        return name + ": a panel has " + text(s.panelBytes) + " bytes; " + text(s.inputs) + " inputs of " +
               text(s.bits) + " bits in groups of " + text(s.group) + " need " + text(PanelBytes(s));
    }
    return "";
}

// Sets the bytes of a tile and of all unified buffer; the kernels take the same.
inline void SizeTile(const QuantLinearShape& s, bool halfIntoFloat, QuantLinearPlan* plan) {
    const bool few = plan->key == QUANT_KEY_ROWS, four = s.bits == 4;
    const int64_t inputs = plan->tileInputs, cells = plan->tilePanels * inputs * kFractal;
    const int64_t blocks = plan->tilePanels * inputs / kSegment, groups = plan->tilePanels * inputs / s.group;
    const int64_t even = plan->tilePanels * CeilTo(inputs / s.group, 2) * kFractal;
    const int64_t segments = inputs / kSegment, operand = halfIntoFloat ? 2 : 4;
    plan->integerBytes = cells * s.bits / 8;
    plan->scaleBytes = groups * 32;
    plan->zeroBytes = four ? even : 0;
    plan->halfBytes = cells * 2;
    plan->operandBytes = few && !halfIntoFloat ? cells * 4 : 0;
    plan->spreadBytes = few ? inputs * kFractal * operand : 0;
    plan->ubBytes = 2 * (plan->integerBytes + plan->scaleBytes + plan->zeroBytes);
    if (four) plan->ubBytes += plan->integerBytes + 2 * 32;
    if (!few) {
        plan->ubBytes += 2 * plan->halfBytes + (four ? even * 2 : 0) + plan->matmulBytes;
        return;
    }
    const int64_t width = plan->blockPanels * kFractal;
    plan->ubBytes += s.rows * inputs * 2 + width * 4 + plan->halfBytes + s.rows * plan->spreadBytes + blocks * 9 * 32 +
                     groups * 64 + s.rows * width * 4 + inputs * 4 + plan->operandBytes;
    if (!halfIntoFloat) plan->ubBytes += 64 * kFractal * 4;
    if (four) {
        plan->ubBytes += 2 * groups * 64 + even * 2 + s.rows * groups * 32 + CeilTo(segments * 4, 32) +
                         3 * segments * 32;
    }
}

// Chooses the largest tile that fits: up to 4 panels and 1,024 inputs, 64 KB of 8-bit integers. A tile of several panels
// has longer vector instructions; the fewest inputs, 256, are bursts of 2 KB with 4 bits. Returns whether one fits.
inline bool ChooseTile(const QuantLinearShape& s, const ChipLimits& chip, bool halfIntoFloat, QuantLinearPlan* plan) {
    QuantLinearPlan best = *plan;
    int64_t most = 0;
    for (int64_t panels : {4, 2, 1}) {
        for (int64_t inputs : {1024, 512, 256}) {
            plan->tilePanels = std::min(panels, plan->blockPanels);
            plan->tileInputs = std::min(inputs, s.inputs);
            SizeTile(s, halfIntoFloat, plan);
            const int64_t size = plan->tilePanels * plan->tileInputs;
            if (plan->ubBytes > chip.ub - kUbMargin || size <= most) continue;
            most = size;
            best = *plan;
        }
    }
    *plan = best;
    return most > 0;
}

// Plans the vector kernel for a few rows, or the tiles of the cube for more. halfIntoFloat: whether the chip multiplies
// float16 into float32. Returns an error message, or an empty string on success.
inline std::string PlanQuantLinear(const QuantLinearShape& s, const ChipLimits& chip, bool halfIntoFloat,
                                   const std::string& name, QuantLinearPlan* plan) {
    const std::string problem = CheckShape(s, name);
    if (!problem.empty()) return problem;
    const bool few = s.rows <= VectorRows(halfIntoFloat);
    *plan = QuantLinearPlan{};
    plan->key = few ? QUANT_KEY_ROWS : s.wide != 0 ? QUANT_KEY_WIDE_TILES : QUANT_KEY_TILES;
    plan->panels = CeilDiv(s.panels, chip.vectorCores);
    plan->workers = plan->blocks = CeilDiv(s.panels, plan->panels);
    plan->blockPanels = std::min<int64_t>(plan->panels, few ? 64 : 16);
    if (!few) {
        PlanBlocks(chip, &plan->workers, &plan->blocks);
        constexpr int64_t kBase = 128, kStepK = 4;
        const int64_t width = plan->blockPanels * kFractal;
        CubePlan& product = plan->product;
        product = PlanCube(s.rows, width, s.inputs, std::min(CeilTo(s.rows, kFractal), kBase), std::min(width, kBase),
                           false, chip);
        product.rowN = s.panels * kFractal;
        product.stepK = std::min(product.stepK, kStepK);
        product.rightInFractals = true;
        product.halfResult = s.wide == 0;
        product.ub = plan->matmulBytes = chip.matmulNeedsUb ? CubeUb(product) : 0;
        if (!CubeFits(product)) {
            return name + ": a block of " + std::to_string(product.baseM) + " x " + std::to_string(product.baseN) +
                   " does not fit the chip's local memory";
        }
        plan->workspaceBytes = width * s.inputs * 2;
    }
    if (!ChooseTile(s, chip, halfIntoFloat, plan)) {
        return name + ": no tile fits the chip's unified buffer of " + std::to_string(chip.ub) + " bytes";
    }
    return "";
}

}  // namespace edgellama

#endif
