// FusedAttention: definition, shape inference and tiling. One node serves every bucket of a graph with gears.
#include "attention_host.h"

namespace {

using namespace edgellama;

const char* const kName = "FusedAttention";

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
    if (problem.empty()) problem = TileCube(platform, kName, plan.qk, &data->prefill.qk);
    if (problem.empty()) problem = TileCube(platform, kName, plan.pv, &data->prefill.pv);
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
