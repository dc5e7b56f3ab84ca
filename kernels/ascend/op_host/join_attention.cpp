// JoinAttention: definition, shape inference and tiling.
//
// Inputs:  out [B, S, H D] float16; partial [B, G, parts, H / G (D + 16)] float32, both of SplitAttention.
// Output:  joined [B, S, H D] float16.
// kernels/reference.py defines the meaning and the order.
#include "host.h"
#include "tiling_fill.h"

namespace {

using namespace edgellama;

const char* const kName = "JoinAttention";

// Inputs and outputs, in the order of kernels/reference.py.
enum Input : size_t { kOut, kPartial };
enum Output : size_t { kJoined };

// Reads ranks and dimensions into `out`. Returns an error message, or an empty string on success. An unknown dimension
// stays -1.
template <class Context>
std::string ReadShape(Context* context, JoinShape* shape) {
    const gert::Shape *out = ShapeOf(context, kOut), *partial = ShapeOf(context, kPartial);
    if (out == nullptr || partial == nullptr) return std::string(kName) + ": out or partial is missing";
    if (out->GetDimNum() != 3 || partial->GetDimNum() != 4) {
        return std::string(kName) + ": out and partial have " + std::to_string(out->GetDimNum()) + " and " +
               std::to_string(partial->GetDimNum()) + " dimensions; they need 3 and 4";
    }
    *shape = {out->GetDim(0), out->GetDim(1), out->GetDim(2), partial->GetDim(1), partial->GetDim(2),
              partial->GetDim(3)};
    return "";
}

ge::graphStatus TilingFunction(gert::TilingContext* context) {
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    JoinShape shape;
    ChipLimits limits;
    JoinPlan plan;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) problem = ReadLimits(platform, kName, &limits);
    if (problem.empty()) problem = PlanJoin(shape, limits, kName, &plan);
    if (!problem.empty()) return Refuse(problem);
    JoinTiling* data = context->GetTilingData<JoinTiling>();
    if (data == nullptr) return Refuse(std::string(kName) + ": no room for the tiling data");
    Fill(shape, plan, data);
    const int64_t key = shape.tokens == 1 ? ATTENTION_KEY_DECODE : ATTENTION_KEY_PREFILL;
    return SetLaunch(context, platform, limits, key, plan.workers, 0);
}

ge::graphStatus InferShapeFunction(gert::InferShapeContext* context) {
    JoinShape shape;
    JoinPlan plan;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) {
        JoinShape known = shape;
        known.rows = known.rows < 0 ? 1 : known.rows;
        known.tokens = known.tokens < 0 ? 1 : known.tokens;
        problem = CheckShape(known, kName, &plan);
    }
    if (!problem.empty()) return Refuse(problem);
    *context->GetOutputShape(kJoined) = *context->GetInputShape(kOut);
    return ge::GRAPH_SUCCESS;
}

ge::graphStatus InferDataTypeFunction(gert::InferDataTypeContext* context) {
    context->SetOutputDataType(kJoined, context->GetInputDataType(kOut));
    return ge::GRAPH_SUCCESS;
}

}  // namespace

namespace ops {

class JoinAttention : public OpDef {
public:
    explicit JoinAttention(const char* name) : OpDef(name) {
        Input("out").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Input("partial").ParamType(REQUIRED).DataType({ge::DT_FLOAT}).Format({ge::FORMAT_ND});
        Output("joined").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        SetInferShape(InferShapeFunction).SetInferDataType(InferDataTypeFunction);
        AICore().SetTiling(TilingFunction);
        ConfigureChips(*this);
    }
};

OP_ADD(JoinAttention);

}  // namespace ops
