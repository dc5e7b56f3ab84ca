// FusedAttention: definition, shape inference and tiling. One node serves every bucket of a graph with gears.
#include "attention_host.h"

namespace {

using namespace edgellama;

const char* const kName = "FusedAttention";

// Matmul's own tiling for one product, with the plan's base block and half of L1 and L0C, which two objects share.
std::string TileCube(const platform_ascendc::PlatformAscendC& platform, const CubePlan& plan, const ChipLimits& limits,
                     int64_t ubBytes, bool transposed, AscendC::tiling::TCubeTiling* out) {
    using matmul_tiling::CubeFormat;
    using matmul_tiling::DataType;
    using matmul_tiling::TPosition;
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    matmul_tiling::MatmulApiTiling tiling(platform);
    tiling.SetAType(TPosition::GM, CubeFormat::ND, DataType::DT_FLOAT16);
    tiling.SetBType(TPosition::GM, CubeFormat::ND, DataType::DT_FLOAT16, transposed);
    tiling.SetCType(TPosition::GM, CubeFormat::ND, DataType::DT_FLOAT);
    tiling.EnableBias(false);
    tiling.SetShape(narrow(plan.m), narrow(plan.n), narrow(plan.k));
    tiling.SetOrgShape(narrow(plan.m), narrow(plan.n), narrow(plan.k));
    tiling.SetFixSplit(narrow(plan.baseM), narrow(plan.baseN), -1);
    tiling.SetBufferSpace(narrow(limits.l1 / 2), narrow(limits.l0c / 2), ubBytes > 0 ? narrow(ubBytes) : -1);
    if (tiling.GetTiling(*out) == -1 || out->baseM != plan.baseM || out->baseN != plan.baseN) {
        return std::string(kName) + ": Matmul finds no tiling for " + std::to_string(plan.m) + " x " +
               std::to_string(plan.n) + " x " + std::to_string(plan.k) + " on this chip";
    }
    return "";
}

ge::graphStatus TilingFunction(gert::TilingContext* context) {
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    AttentionShape shape;
    ChipLimits limits;
    std::string problem = ReadShape(context, kName, &shape);
    if (problem.empty()) problem = ReadLimits(platform, kName, &limits);
    if (!problem.empty()) return Refuse(problem);
    AttentionTiling* data = context->GetTilingData<AttentionTiling>();
    if (data == nullptr) return Refuse(std::string(kName) + ": no room for the tiling data");
    *data = AttentionTiling();
    if (shape.tokens == 1) return TileDecode(context, platform, shape, limits, kName, &data->decode);

    PrefillPlan plan;
    problem = PlanPrefill(shape, limits, kName, &plan);
    if (problem.empty()) {
        problem = TileCube(platform, plan.qk, limits, plan.matmulBytes, true, &data->prefill.qk);
    }
    if (problem.empty()) {
        problem = TileCube(platform, plan.pv, limits, plan.matmulBytes, false, &data->prefill.pv);
    }
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, &data->prefill);
    return SetLaunch(context, platform, ATTENTION_KEY_PREFILL, plan.blocks, plan.workers * plan.workspaceBytes);
}

ge::graphStatus InferShapeFunction(gert::InferShapeContext* context) { return InferShape(context, kName); }

ge::graphStatus InferDataTypeFunction(gert::InferDataTypeContext* context) { return InferDataType(context); }

}  // namespace

namespace ops {

class FusedAttention : public OpDef {
public:
    explicit FusedAttention(const char* name) : OpDef(name) {
        DeclareAttention(*this, InferShapeFunction, InferDataTypeFunction, TilingFunction);
    }
};

OP_ADD(FusedAttention);

}  // namespace ops
