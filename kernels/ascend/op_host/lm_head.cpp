// LmHead: definition, shape inference and tiling.
//
// Inputs:  x [B, E] float16; weight [V, E] float16.
// Output:  logits [B, V] float32.
// kernels/reference.py defines the meaning and the order.
#include "host.h"
#include "tiling_fill.h"

namespace {

using namespace edgellama;

const char* const kName = "LmHead";

// Inputs and outputs, in the order of kernels/reference.py.
enum Input : size_t { kX, kWeight };
enum Output : size_t { kLogits };

// Reads ranks and dimensions into `out`. Returns an error message, or an empty string on success. An unknown number of
// rows stays -1.
template <class Context>
std::string ReadShape(Context* context, LmHeadShape* out) {
    const gert::Shape *x = ShapeOf(context, kX), *weight = ShapeOf(context, kWeight);
    if (x == nullptr || weight == nullptr) return std::string(kName) + ": x or weight is missing";
    if (x->GetDimNum() != 2 || weight->GetDimNum() != 2) {
        return std::string(kName) + ": x and weight have " + std::to_string(x->GetDimNum()) + " and " +
               std::to_string(weight->GetDimNum()) + " dimensions; both need 2";
    }
    *out = {x->GetDim(0), x->GetDim(1), weight->GetDim(0)};
    if (weight->GetDim(1) != out->hidden) {
        return std::string(kName) + ": x is " + std::to_string(out->hidden) + " wide, the weight " +
               std::to_string(weight->GetDim(1));
    }
    return "";
}

ge::graphStatus TilingFunction(gert::TilingContext* context) {
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    LmHeadShape shape;
    ChipLimits limits;
    LmHeadPlan plan;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) problem = ReadLimits(platform, kName, &limits);
    if (problem.empty()) problem = PlanLmHead(shape, limits, kName, &plan);
    if (!problem.empty()) return Refuse(problem);
    LmHeadTiling* data = context->GetTilingData<LmHeadTiling>();
    if (data == nullptr) return Refuse(std::string(kName) + ": no room for the tiling data");
    *data = LmHeadTiling();
    problem = TileCube(platform, kName, plan.product, &data->product);
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, data);
    return SetLaunch(context, platform, limits, 0, plan.blocks, 0);
}

ge::graphStatus InferShapeFunction(gert::InferShapeContext* context) {
    LmHeadShape shape;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) {
        LmHeadShape known = shape;
        known.rows = known.rows < 0 ? 1 : known.rows;
        problem = CheckShape(known, kName);
    }
    if (!problem.empty()) return Refuse(problem);
    gert::Shape* logits = context->GetOutputShape(kLogits);
    logits->SetDimNum(2);
    logits->SetDim(0, shape.rows);
    logits->SetDim(1, shape.vocabulary);
    return ge::GRAPH_SUCCESS;
}

ge::graphStatus InferDataTypeFunction(gert::InferDataTypeContext* context) {
    context->SetOutputDataType(kLogits, ge::DT_FLOAT);
    return ge::GRAPH_SUCCESS;
}

}  // namespace

namespace ops {

class LmHead : public OpDef {
public:
    explicit LmHead(const char* name) : OpDef(name) {
        Input("x").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Input("weight").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Output("logits").ParamType(REQUIRED).DataType({ge::DT_FLOAT}).Format({ge::FORMAT_ND});
        SetInferShape(InferShapeFunction).SetInferDataType(InferDataTypeFunction);
        AICore().SetTiling(TilingFunction);
        ConfigureChips(*this);
    }
};

OP_ADD(LmHead);

}  // namespace ops
