// What the two attention operators share on a host with CANN: reading shapes and attributes, inference, definition.
#ifndef EDGELLAMA_ATTENTION_HOST_H
#define EDGELLAMA_ATTENTION_HOST_H

#include "host.h"
#include "tiling_fill.h"

namespace edgellama {

// Inputs, outputs and attributes, in the order of kernels/reference.py.
enum Input : size_t { kQkv, kCos, kSin, kStart, kLength, kKeyCache, kValueCache };
enum Output : size_t { kOut, kKeyCacheOut, kValueCacheOut };
enum Attribute : size_t { kHeads, kScale, kWindow };

// Reads ranks, dimensions and attributes into `out`; returns what is wrong, or an empty string. A dimension that is
// not known yet (-1) is left as -1.
template <class Context>
std::string ReadShape(Context* context, const std::string& name, AttentionShape* out) {
    const struct { size_t input; const char* name; size_t rank; } ranks[] = {
        {kQkv, "qkv", 3}, {kCos, "cos", 2}, {kSin, "sin", 2}, {kStart, "start", 1}, {kLength, "length", 1},
        {kKeyCache, "k_cache", 4}, {kValueCache, "v_cache", 4}};
    for (const auto& expected : ranks) {
        const gert::Shape* shape = ShapeOf(context, expected.input);
        if (shape == nullptr) return name + ": input " + expected.name + " is missing";
        if (shape->GetDimNum() != expected.rank) {
            return name + ": " + expected.name + " has " + std::to_string(shape->GetDimNum()) +
                   " dimensions, it needs " + std::to_string(expected.rank);
        }
    }
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

// out [B, S, H * D]; the caches keep their shapes. B and S may be unknown (-1) while a graph with gears is built.
inline ge::graphStatus InferShape(gert::InferShapeContext* context, const std::string& name) {
    AttentionShape shape;
    std::string problem = ReadShape(context, name, &shape);
    if (problem.empty()) {
        AttentionShape known = shape;
        known.rows = known.rows < 0 ? 1 : known.rows;
        known.tokens = known.tokens < 0 ? 1 : known.tokens;
        problem = CheckShape(known, name);
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

inline ge::graphStatus InferDataType(gert::InferDataTypeContext* context) {
    context->SetOutputDataType(kOut, context->GetInputDataType(kQkv));
    context->SetOutputDataType(kKeyCacheOut, context->GetInputDataType(kKeyCache));
    context->SetOutputDataType(kValueCacheOut, context->GetInputDataType(kValueCache));
    return ge::GRAPH_SUCCESS;
}

// Plans the decode kernel and sets up its launch.
inline ge::graphStatus TileDecode(gert::TilingContext* context, const platform_ascendc::PlatformAscendC& platform,
                                  const AttentionShape& shape, const ChipLimits& limits, const std::string& name,
                                  DecodeTiling* tiling) {
    DecodePlan plan;
    const std::string problem = PlanDecode(shape, limits, name, &plan);
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, tiling);
    if (plan.splits > 1) context->SetScheduleMode(1);  // all cores at once, as SyncAll needs
    return SetLaunch(context, platform, ATTENTION_KEY_DECODE, plan.workers, plan.workspaceBytes);
}

}  // namespace edgellama

namespace ops {

// The definition that both operators have. An output with an input's name is that input, written in place.
template <class InferShapeFunc, class InferDataTypeFunc, class TilingFunc>
void DeclareAttention(OpDef& op, InferShapeFunc inferShape, InferDataTypeFunc inferDataType, TilingFunc tiling) {
    op.Input("qkv").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
    op.Input("cos").ParamType(REQUIRED).DataType({ge::DT_FLOAT}).Format({ge::FORMAT_ND});
    op.Input("sin").ParamType(REQUIRED).DataType({ge::DT_FLOAT}).Format({ge::FORMAT_ND});
    op.Input("start").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND});
    op.Input("length").ParamType(REQUIRED).DataType({ge::DT_INT32}).Format({ge::FORMAT_ND});
    op.Input("k_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
    op.Input("v_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
    op.Output("out").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
    op.Output("k_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
    op.Output("v_cache").ParamType(REQUIRED).DataType({ge::DT_FLOAT16}).Format({ge::FORMAT_ND});
    op.Attr("heads").AttrType(REQUIRED).Int();
    op.Attr("scale").AttrType(REQUIRED).Float();
    op.Attr("window").AttrType(OPTIONAL).Int(0);
    op.SetInferShape(inferShape).SetInferDataType(inferDataType);
    op.AICore().SetTiling(tiling);
    ConfigureChips(op);
}

}  // namespace ops

#endif
