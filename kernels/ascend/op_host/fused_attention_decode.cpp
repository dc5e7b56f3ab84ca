// FusedAttentionDecode: definition, shape inference and tiling of the kernel for one token a row.
#include "attention_host.h"

namespace {

using namespace edgellama;

const char* const kName = "FusedAttentionDecode";

ge::graphStatus TilingFunction(gert::TilingContext* context) {
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    AttentionShape shape;
    ChipLimits limits;
    std::string problem = ReadShape(context, kName, &shape);
    if (problem.empty()) problem = ReadLimits(platform, kName, &limits);
    if (!problem.empty()) return Refuse(problem);
    DecodeTiling* data = context->GetTilingData<DecodeTiling>();
    if (data == nullptr) return Refuse(std::string(kName) + ": no room for the tiling data");
    return TileDecode(context, platform, shape, limits, kName, data);
}

ge::graphStatus InferShapeFunction(gert::InferShapeContext* context) { return InferShape(context, kName); }

ge::graphStatus InferDataTypeFunction(gert::InferDataTypeContext* context) { return InferDataType(context); }

}  // namespace

namespace ops {

class FusedAttentionDecode : public OpDef {
public:
    explicit FusedAttentionDecode(const char* name) : OpDef(name) {
        DeclareAttention(*this, InferShapeFunction, InferDataTypeFunction, TilingFunction);
    }
};

OP_ADD(FusedAttentionDecode);

}  // namespace ops
