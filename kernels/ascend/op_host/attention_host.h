// What FusedAttention and SplitAttention share on a host with CANN: shapes, tiling functions, shape and type inference.
#ifndef EDGELLAMA_ATTENTION_HOST_H
#define EDGELLAMA_ATTENTION_HOST_H

#include "host.h"
#include "tiling_fill.h"

namespace edgellama {

// Inputs and attributes, in the order of kernels/reference.py. FusedAttention has no parts.
enum AttentionInput : size_t { kQkv, kCos, kSin, kStart, kLength, kKeyCache, kValueCache };
enum AttentionAttribute : size_t { kHeads, kScale, kWindow, kParts };

// Returns an error message if an input is missing or has the wrong rank, else an empty string.
template <class Context>
std::string CheckRanks(Context* context, const std::string& name) {
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
    return "";
}

// Reads ranks, dimensions and attributes into `out`. Returns an error message, or an empty string on success.
// A dimension that is not known yet stays -1.
template <class Context>
std::string ReadShape(Context* context, const std::string& name, bool split, AttentionShape* out) {
    const std::string problem = CheckRanks(context, name);
    if (!problem.empty()) return problem;
    const gert::RuntimeAttrs* attributes = context->GetAttrs();
    if (attributes == nullptr || attributes->GetInt(kHeads) == nullptr || attributes->GetFloat(kScale) == nullptr) {
        return name + ": the attributes heads and scale are missing";
    }
    const gert::Shape &qkv = *ShapeOf(context, kQkv), &cos = *ShapeOf(context, kCos), &sin = *ShapeOf(context, kSin);
    const gert::Shape &keys = *ShapeOf(context, kKeyCache), &values = *ShapeOf(context, kValueCache);
    const int64_t* window = attributes->GetInt(kWindow);
    const int64_t* parts = split ? attributes->GetInt(kParts) : nullptr;
    if (split && parts == nullptr) return name + ": the attribute parts is missing";
    *out = {qkv.GetDim(0), qkv.GetDim(1), qkv.GetDim(2), *attributes->GetInt(kHeads), keys.GetDim(1), keys.GetDim(3),
            keys.GetDim(2), cos.GetDim(0), window == nullptr ? 0 : *window, *attributes->GetFloat(kScale),
            split ? *parts : 1, split};
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

// Plans the decode kernel (one token per row), both of its products, and sets up its launch.
inline ge::graphStatus TileDecode(gert::TilingContext* context, const platform_ascendc::PlatformAscendC& platform,
                                  const std::string& name, const AttentionShape& shape, const ChipLimits& limits,
                                  DecodeTiling* tiling) {
    DecodePlan plan;
    std::string problem = PlanDecode(shape, limits, name, &plan);
    if (problem.empty()) problem = TileCube(platform, name, plan.qk, &tiling->qk);
    if (problem.empty()) problem = TileCube(platform, name, plan.pv, &tiling->pv);
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, tiling);
    return SetLaunch(context, platform, limits, ATTENTION_KEY_DECODE, plan.blocks, plan.workers * plan.workspaceBytes);
}

// Plans the prefill kernel (several tokens per row), both of its products, and sets up its launch.
inline ge::graphStatus TilePrefill(gert::TilingContext* context, const platform_ascendc::PlatformAscendC& platform,
                                   const std::string& name, const AttentionShape& shape, const ChipLimits& limits,
                                   PrefillTiling* tiling) {
    PrefillPlan plan;
    std::string problem = PlanPrefill(shape, limits, name, &plan);
    if (problem.empty()) problem = TileCube(platform, name, plan.qk, &tiling->qk);
    if (problem.empty()) problem = TileCube(platform, name, plan.pv, &tiling->pv);
    if (!problem.empty()) return Refuse(problem);
    Fill(shape, plan, tiling);
    return SetLaunch(context, platform, limits, ATTENTION_KEY_PREFILL, plan.blocks,
                     plan.workers * plan.workspaceBytes);
}

// The tiling function of FusedAttention, and with `split` of SplitAttention.
inline ge::graphStatus TileAttention(gert::TilingContext* context, const std::string& name, bool split) {
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    AttentionShape shape;
    ChipLimits limits;
    std::string problem = ReadShape(context, name, split, &shape);
    if (problem.empty()) problem = ReadLimits(platform, name, &limits);
    if (!problem.empty()) return Refuse(problem);
    AttentionTiling* data = context->GetTilingData<AttentionTiling>();
    if (data == nullptr) return Refuse(name + ": no room for the tiling data");
    *data = AttentionTiling();
    if (shape.tokens == 1) return TileDecode(context, platform, name, shape, limits, &data->decode);
    return TilePrefill(context, platform, name, shape, limits, &data->prefill);
}

// out [B, S, H D]; partial [B, G, parts, H / G (D + 16)] of SplitAttention; the caches keep their shapes. B and S may
// be unknown (-1) while a graph with gears is built.
inline ge::graphStatus InferAttention(gert::InferShapeContext* context, const std::string& name, bool split) {
    AttentionShape shape;
    std::string problem = ReadShape(context, name, split, &shape);
    if (problem.empty()) {
        AttentionShape known = shape;
        known.rows = known.rows < 0 ? 1 : known.rows;
        known.tokens = known.tokens < 0 ? 1 : known.tokens;
        problem = CheckShape(known, name);
    }
    if (!problem.empty()) return Refuse(problem);
    gert::Shape* out = context->GetOutputShape(0);
    out->SetDimNum(3);
    out->SetDim(0, shape.rows);
    out->SetDim(1, shape.tokens);
    out->SetDim(2, shape.heads * shape.headDim);
    if (split) {
        gert::Shape* partial = context->GetOutputShape(1);
        partial->SetDimNum(4);
        partial->SetDim(0, shape.rows);
        partial->SetDim(1, shape.groups);
        partial->SetDim(2, shape.parts);
        partial->SetDim(3, shape.heads / shape.groups * (shape.headDim + 16));
    }
    const size_t caches = split ? 2 : 1;
    *context->GetOutputShape(caches) = *context->GetInputShape(kKeyCache);
    *context->GetOutputShape(caches + 1) = *context->GetInputShape(kValueCache);
    return ge::GRAPH_SUCCESS;
}

inline ge::graphStatus InferAttentionTypes(gert::InferDataTypeContext* context, bool split) {
    const size_t caches = split ? 2 : 1;
    context->SetOutputDataType(0, context->GetInputDataType(kQkv));
    if (split) context->SetOutputDataType(1, ge::DT_FLOAT);
    context->SetOutputDataType(caches, context->GetInputDataType(kKeyCache));
    context->SetOutputDataType(caches + 1, context->GetInputDataType(kValueCache));
    return ge::GRAPH_SUCCESS;
}

}  // namespace edgellama

#endif
