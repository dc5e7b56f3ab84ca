// FusedAttention: definition, shape inference and tiling. One node serves every bucket of a graph with gears.
//
// Inputs:     qkv [B, S, (H + 2 G) D] float16; cos, sin [P, D / 2] float32; start, length [B] int32;
//             k_cache, v_cache [B, G, C, D] float16.
// Outputs:    out [B, S, H D] float16; k_cache, v_cache: the inputs of the same name, written in place.
// Attributes: heads int (H), scale float, window int (0: off).
// kernels/reference.py defines the meaning and the order of all of them.
#include "host.h"
#include "tiling_fill.h"

namespace {

using namespace edgellama;

const char* const kName = "FusedAttention";

// Inputs, outputs and attributes, in the order of kernels/reference.py.
enum Input : size_t { kQkv, kCos, kSin, kStart, kLength, kKeyCache, kValueCache };
enum Output : size_t { kOut, kKeyCacheOut, kValueCacheOut };
enum Attribute : size_t { kHeads, kScale, kWindow };

// Returns an error message if an input is missing or has the wrong rank, else an empty string.
template <class Context>
std::string CheckRanks(Context* context) {
    const struct { size_t input; const char* name; size_t rank; } ranks[] = {
        {kQkv, "qkv", 3}, {kCos, "cos", 2}, {kSin, "sin", 2}, {kStart, "start", 1}, {kLength, "length", 1},
        {kKeyCache, "k_cache", 4}, {kValueCache, "v_cache", 4}};
    for (const auto& expected : ranks) {
        const gert::Shape* shape = ShapeOf(context, expected.input);
        if (shape == nullptr) return std::string(kName) + ": input " + expected.name + " is missing";
        if (shape->GetDimNum() != expected.rank) {
            return std::string(kName) + ": " + expected.name + " has " + std::to_string(shape->GetDimNum()) +
                   " dimensions, it needs " + std::to_string(expected.rank);
        }
    }
    return "";
}

// Reads ranks, dimensions and attributes into `out`. Returns an error message, or an empty string on success.
// A dimension that is not known yet stays -1.
template <class Context>
std::string ReadShape(Context* context, AttentionShape* out) {
    const std::string name = kName, problem = CheckRanks(context);
    if (!problem.empty()) return problem;
    const gert::RuntimeAttrs* attributes = context->GetAttrs();
    if (attributes == nullptr || attributes->GetInt(kHeads) == nullptr || attributes->GetFloat(kScale) == nullptr) {
        return name + ": the attributes heads and scale are missing";
    }
    const gert::Shape &qkv = *ShapeOf(context, kQkv), &cos = *ShapeOf(context, kCos), &sin = *ShapeOf(context, kSin);
    const gert::Shape &keys = *ShapeOf(context, kKeyCache), &values = *ShapeOf(context, kValueCache);
    const int64_t* window = attributes->GetInt(kWindow);
    *out = {qkv.GetDim(0), qkv.GetDim(1), qkv.GetDim(2), *attributes->GetInt(kHeads), keys.GetDim(1), keys.GetDim(3),
            keys.GetDim(2), cos.GetDim(0), window == nullptr ? 0 : *window, *attributes->GetFloat(kScale)};
    for (size_t i = 0; i < 4; ++i) {
        if (keys.GetDim(i) != values.GetDim(i)) return name + ": k_cache and v_cache differ in shape";
    }
    if (cos.GetDim(0) != sin.GetDim(0) || cos.GetDim(1) != sin.GetDim(1) || 2 * cos.GetDim(1) != out->headDim) {
        return name + ": cos and sin must both be [positions, head size / 2]";
    }
    const int64_t rows[] = {keys.GetDim(0), ShapeOf(context, kStart)->GetDim(0), ShapeOf(context, kLength)->GetDim(0)};
    for (int64_t other : rows) {
        if (out->rows >= 0 && other >= 0 && other != out->rows) {
            return name + ": qkv has " + std::to_string(out->rows) + " rows, a cache, start or length has " +
                   std::to_string(other);
        }
    }
    return "";
}

// Plans the decode kernel (one token per row) and sets up its launch.
ge::graphStatus TileDecode(gert::TilingContext* context, const platform_ascendc::PlatformAscendC& platform,
                           const AttentionShape& shape, const ChipLimits& limits, DecodeTiling* tiling) {
    DecodePlan plan;
    const std::string problem = PlanDecode(shape, limits, kName, &plan);
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, tiling);
    if (plan.splits > 1) context->SetScheduleMode(1);  // SyncAll needs all cores to run at the same time
    return SetLaunch(context, platform, limits, ATTENTION_KEY_DECODE, plan.workers, plan.workspaceBytes);
}

// Plans the prefill kernel (several tokens per row), both of its products, and sets up its launch.
ge::graphStatus TilePrefill(gert::TilingContext* context, const platform_ascendc::PlatformAscendC& platform,
                            const AttentionShape& shape, const ChipLimits& limits, PrefillTiling* tiling) {
    PrefillPlan plan;
    std::string problem = PlanPrefill(shape, limits, kName, &plan);
    if (problem.empty()) problem = TileCube(platform, kName, plan.qk, &tiling->qk);
    if (problem.empty()) problem = TileCube(platform, kName, plan.pv, &tiling->pv);
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, tiling);
    return SetLaunch(context, platform, limits, ATTENTION_KEY_PREFILL, plan.blocks,
                     plan.workers * plan.workspaceBytes);
}

ge::graphStatus TilingFunction(gert::TilingContext* context) {
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    AttentionShape shape;
    ChipLimits limits;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) problem = ReadLimits(platform, kName, &limits);
    if (!problem.empty()) return Refuse(problem);
    AttentionTiling* data = context->GetTilingData<AttentionTiling>();
    if (data == nullptr) return Refuse(std::string(kName) + ": no room for the tiling data");
    *data = AttentionTiling();
    if (shape.tokens == 1) return TileDecode(context, platform, shape, limits, &data->decode);
    return TilePrefill(context, platform, shape, limits, &data->prefill);
}

// out [B, S, H D]; the caches keep their shapes. B and S may be unknown (-1) while a graph with gears is built.
ge::graphStatus InferShapeFunction(gert::InferShapeContext* context) {
    AttentionShape shape;
    std::string problem = ReadShape(context, &shape);
    if (problem.empty()) {
        AttentionShape known = shape;
        known.rows = known.rows < 0 ? 1 : known.rows;
        known.tokens = known.tokens < 0 ? 1 : known.tokens;
        problem = CheckShape(known, kName);
    }
    if (!problem.empty()) return Refuse(problem);
    gert::Shape* out = context->GetOutputShape(kOut);
    out->SetDimNum(3);
    out->SetDim(0, shape.rows);
    out->SetDim(1, shape.tokens);
    out->SetDim(2, shape.heads * shape.headDim);
    *context->GetOutputShape(kKeyCacheOut) = *context->GetInputShape(kKeyCache);
    *context->GetOutputShape(kValueCacheOut) = *context->GetInputShape(kValueCache);
    return ge::GRAPH_SUCCESS;
}

ge::graphStatus InferDataTypeFunction(gert::InferDataTypeContext* context) {
    context->SetOutputDataType(kOut, context->GetInputDataType(kQkv));
    context->SetOutputDataType(kKeyCacheOut, context->GetInputDataType(kKeyCache));
    context->SetOutputDataType(kValueCacheOut, context->GetInputDataType(kValueCache));
    return ge::GRAPH_SUCCESS;
}

}  // namespace

namespace ops {

// An output with the name of an input is that input, written in place.
class FusedAttention : public OpDef {
public:
    explicit FusedAttention(const char* name) : OpDef(name) {
        Input("qkv").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Input("cos").ParamType(REQUIRED).DataType({ge::DT_FLOAT}).Format({ge::FORMAT_ND});
        Input("sin").ParamType(REQUIRED).DataType({ge::DT_FLOAT}).Format({ge::FORMAT_ND});
        Input("start").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND});
        Input("length").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND});
        Input("k_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Input("v_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Output("out").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Output("k_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Output("v_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
        Attr("heads").AttrType(REQUIRED).Int();
        Attr("scale").AttrType(REQUIRED).Float();
        Attr("window").AttrType(OPTIONAL).Int(0);
        SetInferShape(InferShapeFunction).SetInferDataType(InferDataTypeFunction);
        AICore().SetTiling(TilingFunction);
        ConfigureChips(*this);
    }
};

OP_ADD(FusedAttention);

}  // namespace ops
