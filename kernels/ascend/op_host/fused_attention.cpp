// FusedAttention: definition, shape inference and tiling. One node serves every bucket of a graph with gears.
//
// Inputs:     qkv [B, S, (H + 2 G) D] float16; cos, sin [P, D / 2] float32; start, length [B] int32;
//             k_cache, v_cache [B, G, C, D] float16.
// Outputs:    out [B, S, H D] float16; k_cache, v_cache: the inputs of the same name, written in place.
// Attributes: heads int (H), scale float, window int (0: off).
// kernels/reference.py defines the meaning and the order of all of them.
#include "attention_host.h"

namespace {

const char* const kName = "FusedAttention";

ge::graphStatus TilingFunction(gert::TilingContext* context) { return edgellama::TileAttention(context, kName, false); }

ge::graphStatus InferShapeFunction(gert::InferShapeContext* context) {
    return edgellama::InferAttention(context, kName, false);
}

ge::graphStatus InferDataTypeFunction(gert::InferDataTypeContext* context) {
    return edgellama::InferAttentionTypes(context, false);
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
