// QuantLinear: definition, shape inference and tiling.
//
// Inputs:     x [T, K] float16; weight [N / 16, bytes] uint8, packed (kernels/ascend_format.py).
// Output:     y [T, N] float16, or float32 if `wide` is 1.
// Attributes: bits 4 or 8; group 32, 64 or 128; wide 0 or 1.
// kernels/reference.py defines the meaning and the order.
#include "host.h"
#include "tiling_fill.h"

namespace {

using namespace edgellama;

const char* const kName = "QuantLinear";

// Inputs, outputs and attributes, in the order of kernels/reference.py.
enum Input : size_t { kX, kWeight };
enum Output : size_t { kY };
enum Attribute : size_t { kBits, kGroup, kWide };

// Reads ranks, dimensions and attributes into `out`. Returns an error message, or an empty string on success. An unknown
// number of rows stays -1.
template <class Context>
std::string ReadShape(Context* context, QuantLinearShape* out) {
    const gert::Shape *x = ShapeOf(context, kX), *weight = ShapeOf(context, kWeight);
    if (x == nullptr || weight == nullptr) return std::string(kName) + ": x or weight is missing";
    if (x->GetDimNum() != 2 || weight->GetDimNum() != 2) {
        return std::string(kName) + ": x and weight have " + std::to_string(x->GetDimNum()) + " and " +
               std::to_string(weight->GetDimNum()) + " dimensions; both need 2";
    }
    const auto* attributes = context->GetAttrs();
    const int64_t *bits = nullptr, *group = nullptr, *wide = nullptr;
    if (attributes != nullptr) {
        bits = attributes->template GetAttrPointer<int64_t>(kBits);
        group = attributes->template GetAttrPointer<int64_t>(kGroup);
        wide = attributes->template GetAttrPointer<int64_t>(kWide);
    }
    if (bits == nullptr || group == nullptr || wide == nullptr) {
        return std::string(kName) + ": bits, group or wide is missing";
    }
    *out = {x->GetDim(0), x->GetDim(1), weight->GetDim(0), weight->GetDim(1), *bits, *group, *wide};
    return "";
}

ge::graphStatus TilingFunction(gert::TilingContext* context) {
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    QuantLinearShape shape;
    ChipLimits limits;
    QuantLinearPlan plan;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) problem = ReadLimits(platform, kName, &limits);
    const bool halfIntoFloat = platform.GetSocVersion() != platform_ascendc::SocVersion::ASCEND310B;
    if (problem.empty()) problem = PlanQuantLinear(shape, limits, halfIntoFloat, kName, &plan);
    if (!problem.empty()) return Refuse(problem);
    QuantLinearTiling* data = context->GetTilingData<QuantLinearTiling>();
    if (data == nullptr) return Refuse(std::string(kName) + ": no room for the tiling data");
    *data = QuantLinearTiling();
    if (plan.key != QUANT_KEY_ROWS) problem = TileCube(platform, kName, plan.product, &data->product);
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, data);
    return SetLaunch(context, platform, limits, plan.key, plan.blocks, plan.workers * plan.workspaceBytes);
}

ge::graphStatus InferShapeFunction(gert::InferShapeContext* context) {
    QuantLinearShape shape;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) {
        QuantLinearShape known = shape;
        known.rows = known.rows < 0 ? 1 : known.rows;
        problem = CheckShape(known, kName);
    }
    if (!problem.empty()) return Refuse(problem);
    gert::Shape* y = context->GetOutputShape(kY);
    y->SetDimNum(2);
    y->SetDim(0, shape.rows);
    y->SetDim(1, shape.panels * kFractal);
    return ge::GRAPH_SUCCESS;
}

ge::graphStatus InferDataTypeFunction(gert::InferDataTypeContext* context) {
    const auto* attributes = context->GetAttrs();
    const int64_t* wide = attributes == nullptr ? nullptr : attributes->GetAttrPointer<int64_t>(kWide);
    if (wide == nullptr) return Refuse(std::string(kName) + ": wide is missing");
    context->SetOutputDataType(kY, *wide != 0 ? ge::DT_FLOAT : ge::DT_FLOAT16);
    return ge::GRAPH_SUCCESS;
}

}  // namespace

namespace ops {

class QuantLinear : public OpDef {
public:
    explicit QuantLinear(const char* name) : OpDef(name) {
        Input("x").ParamType(REQUIRED).DataType({ge::DT_FLOAT16, ge::DT_FLOAT16}).Format({ge::FORMAT_ND, ge::FORMAT_ND});
        Input("weight").ParamType(REQUIRED).DataType({ge::DT_UINT8, ge::DT_UINT8}).Format({ge::FORMAT_ND, ge::FORMAT_ND});
        Output("y").ParamType(REQUIRED).DataType({ge::DT_FLOAT16, ge::DT_FLOAT}).Format({ge::FORMAT_ND, ge::FORMAT_ND});
        Attr("bits").AttrType(REQUIRED).Int();
        Attr("group").AttrType(REQUIRED).Int();
        Attr("wide").AttrType(OPTIONAL).Int(0);
        SetInferShape(InferShapeFunction).SetInferDataType(InferDataTypeFunction);
        AICore().SetTiling(TilingFunction);
        ConfigureChips(*this);
    }
};

OP_ADD(QuantLinear);

}  // namespace ops
