// The operator EdgeDecoderLayer: a decoder layer as a custom kernel of MindSpore Lite.
#pragma once

#include "layer/decoder_layer.h"
#include "lite/lite_operator.h"

namespace edgellama {

// EdgeDecoderLayer(h [B, S, E], start, length [B], cos, sin [P, D/2], weights [bytes], k_cache, v_cache [B, G, C, D],
//   k_scale, v_scale [B, G, C] with int8 caches) -> [B, S, E]
// weights (uint8) holds qkv, o, gate_up and down, in this order. Each has its packed matrix; gamma [K] of the norm before
// it (qkv and gate_up, unless the attribute norms is "post"); bias [N] (if the attribute q_bias, o_bias, gate_bias or
// down_bias is 1); and gamma [N] of the norm after it (o and down, if norms is "post" or "both"). After those of qkv
// come the gammas of q and of k, if the attribute qk_norm says so. Each array starts at a multiple of 64 bytes. The operator writes the caches in place. A float16 array is an input of type int16, because
// MindSpore Lite converts float16 inputs to float32 if its own CPU kernels have no half precision.
class DecoderLayerOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  // An array of the weights: where it is, and the pointer that receives its address.
  struct Array {
    int64_t offset;
    const float** pointer;
  };
  // A linear layer, and the offset of its matrix in the weights.
  struct Part {
    LinearArgs* args;
    int64_t weight;
  };

  void prepare() final;
  void prepare_attention();
  // Adds a linear layer and gives its matrix, the gamma before it and its bias their places in the weights.
  void add_part(LinearArgs& args, Epilogue epilogue, int in, int out, bool norm, const char* bias);
  // Gives an array of `count` floats its place in the weights.
  void add_array(const float*& pointer, int64_t count);
  void add_head_norms();
  // Reserves bytes of the weights, and returns their offset.
  int64_t take(int64_t bytes);
  void run() final;

  DecoderLayerArgs args_;
  std::vector<Part> parts_;
  std::vector<Array> arrays_;
  int64_t bytes_ = 0;  // of the weights, for the parts so far
};

}  // namespace edgellama
