// The operator EdgeDecoderLayer: a decoder layer as a custom kernel of MindSpore Lite.
#pragma once

#include "layer/decoder_layer.h"
#include "lite/lite_operator.h"

namespace edgellama {

// EdgeDecoderLayer(h [B, S, E], start, length [B], cos, sin [P, D/2], weights [bytes], k_cache, v_cache [B, G, C, D],
//   k_scale, v_scale [B, G, C] with int8 caches) -> [B, S, E]
// weights (uint8) holds qkv, o, gate_up and down, in this order. Each has its packed matrix, then gamma [K] (only qkv
// and gate_up), then bias [N] (only if the attribute q_bias, o_bias, gate_bias or down_bias is 1). Each array starts at
// a multiple of 64 bytes. The operator writes the caches in place. A float16 array is an input of type int16, because
// MindSpore Lite converts float16 inputs to float32 if its own CPU kernels have no half precision.
class DecoderLayerOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  // A linear layer, and the offsets of its arrays in the weights; -1: it does not have the array.
  struct Part {
    LinearArgs* args;
    int64_t weight, gamma, bias;
  };

  void prepare() final;
  void prepare_attention();
  // Adds a linear layer and gives its arrays their places in the weights.
  void add_part(LinearArgs& args, Epilogue epilogue, int in, int out, bool norm, const char* bias);
  // Reserves bytes of the weights, and returns their offset.
  int64_t take(int64_t bytes);
  void run() final;

  DecoderLayerArgs args_;
  std::vector<Part> parts_;
  int64_t bytes_ = 0;  // of the weights, for the parts so far
};

}  // namespace edgellama
