// Functions for every operator on a host with CANN: error messages, shapes, the chip's limits, Matmul's tiling, the
// launch.
#ifndef EDGELLAMA_HOST_H
#define EDGELLAMA_HOST_H

#include <cstdio>
#include <string>

#include "cube_plan.h"
#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"
#include "tiling/tiling_api.h"

namespace edgellama {

// Prints an error message in the form that the runtime finds in CANN's log (cann_log.py). Returns the failure status.
inline ge::graphStatus Refuse(const std::string& problem) {
    std::fprintf(stderr, "[ERROR] edgellama: %s\n", problem.c_str());
    return ge::GRAPH_FAILED;
}

inline const gert::Shape* ShapeOf(gert::InferShapeContext* context, size_t input) {
    return context->GetInputShape(input);
}

inline const gert::Shape* ShapeOf(gert::TilingContext* context, size_t input) {
    const gert::StorageShape* shape = context->GetInputShape(input);
    return shape == nullptr ? nullptr : &shape->GetOriginShape();
}

// Reads the chip's limits from the platform. Returns an error message, or an empty string on success.
inline std::string ReadLimits(const platform_ascendc::PlatformAscendC& platform, const std::string& name,
                              ChipLimits* out) {
    using platform_ascendc::CoreMemType;
    using platform_ascendc::SocVersion;
    const SocVersion chip = platform.GetSocVersion();
    if (chip != SocVersion::ASCEND910B && chip != SocVersion::ASCEND310P && chip != SocVersion::ASCEND310B) {
        return name + ": supports Ascend 310P, 310B and 910B, not this chip";
    }
    uint64_t ub = 0, l1 = 0, l0a = 0, l0b = 0, l0c = 0;
    platform.GetCoreMemSize(CoreMemType::UB, ub);
    platform.GetCoreMemSize(CoreMemType::L1, l1);
    platform.GetCoreMemSize(CoreMemType::L0_A, l0a);
    platform.GetCoreMemSize(CoreMemType::L0_B, l0b);
    platform.GetCoreMemSize(CoreMemType::L0_C, l0c);
    const auto wide = [](uint64_t value) { return static_cast<int64_t>(value); };
    *out = {chip == SocVersion::ASCEND910B, chip == SocVersion::ASCEND310P, platform.GetCoreNumAic(),
            platform.GetCoreNumAiv(), wide(ub), wide(l1), wide(l0a), wide(l0b), wide(l0c),
            SkippedWorkspace(chip == SocVersion::ASCEND310P)};
    if (out->cubeCores < 1 || out->vectorCores < out->cubeCores || ub == 0) {
        return name + ": the platform reports no cores or no unified buffer";
    }
    return "";
}

// Sets the tiling key, the number of blocks, and the workspace: kernelBytes plus what CANN keeps at its start.
inline ge::graphStatus SetLaunch(gert::TilingContext* context, const platform_ascendc::PlatformAscendC& platform,
                                 const ChipLimits& limits, int64_t key, int64_t blocks, int64_t kernelBytes) {
    context->SetTilingKey(static_cast<uint64_t>(key));
    context->SetBlockDim(static_cast<uint32_t>(blocks));
    size_t* workspace = context->GetWorkspaceSizes(1);
    if (workspace == nullptr) return ge::GRAPH_FAILED;
    workspace[0] = static_cast<size_t>(WorkspaceBytes(limits, kernelBytes, platform.GetLibApiWorkSpaceSize()));
    return ge::GRAPH_SUCCESS;
}

// Runs Matmul's own tiling for one product, with the plan's base block and memory. Returns an error message, or an
// empty string on success.
inline std::string TileCube(const platform_ascendc::PlatformAscendC& platform, const std::string& name,
                            const CubePlan& plan, AscendC::tiling::TCubeTiling* out) {
    using matmul_tiling::CubeFormat;
    using matmul_tiling::DataType;
    using matmul_tiling::TPosition;
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    matmul_tiling::MatmulApiTiling tiling(platform);
    tiling.SetAType(TPosition::GM, CubeFormat::ND, DataType::DT_FLOAT16);
    tiling.SetBType(TPosition::GM, plan.rightInFractals ? CubeFormat::NZ : CubeFormat::ND, DataType::DT_FLOAT16,
                    plan.transposed);
    tiling.SetCType(TPosition::GM, CubeFormat::ND, plan.halfResult ? DataType::DT_FLOAT16 : DataType::DT_FLOAT);
    tiling.EnableBias(false);
    tiling.SetShape(narrow(plan.m), narrow(plan.n), narrow(plan.k));
    tiling.SetOrgShape(narrow(plan.m), narrow(plan.rowN), narrow(plan.k));
    tiling.SetFixSplit(narrow(plan.baseM), narrow(plan.baseN), -1);
    tiling.SetBufferSpace(narrow(plan.l1), narrow(plan.l0c), plan.ub > 0 ? narrow(plan.ub) : -1);
    tiling.SetMatmulConfigParams(0);  // the kernels' template, Norm; the default, MDL, needs more memory
    if (tiling.GetTiling(*out) == -1 || out->baseM != plan.baseM || out->baseN != plan.baseN) {
        return name + ": Matmul finds no tiling for " + std::to_string(plan.m) + " x " +
               std::to_string(plan.n) + " x " + std::to_string(plan.k) + " on this chip";
    }
    const int64_t ub = std::max(out->shareUbSize, 2 * out->transLength);  // as MatmulGetTmpBufSize computes it
    if (plan.ub > 0 && ub > plan.ub) {
        return name + ": Matmul needs " + std::to_string(ub) + " bytes of unified buffer, the plan gives it " +
               std::to_string(plan.ub);
    }
    return "";
}

}  // namespace edgellama

namespace ops {

inline void ConfigureChips(OpDef& op) {
    op.AICore().AddConfig("ascend310p");
    op.AICore().AddConfig("ascend310b");
    op.AICore().AddConfig("ascend910b");
}

}  // namespace ops

#endif
