// A decoder layer as MindSpore Lite sees it: checked when a graph is built, run on the process's pool.
#pragma once

#include "layer/decoder_layer.h"
#include "lite/lite_operator.h"

namespace edgellama {

// EdgeDecoderLayer(h [B, S, E], start, length [B], cos, sin [P, D/2], weights [bytes], k_cache, v_cache [B, G, C, D],
//   k_scale, v_scale [B, G, C] with int8 caches) -> [B, S, E]
// weights holds, each at a multiple of 64 bytes, of qkv, o, gate_up and down in turn: the packed matrix, gamma [K] (qkv
// and gate_up only) and bias [N] (where q_bias, o_bias, gate_bias, down_bias say so).
// The caches are written in place. A float16 array is an input of type int16: MindSpore Lite makes float32 of a float16
// input where the CPU's own kernels have no half precision.
class DecoderLayerOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  // A linear layer and where its weights lie; -1: it has none.
  struct Part {
    LinearArgs* args;
    int64_t weight, gamma, bias;
  };

  void prepare() final;
  void prepare_attention();
  void add_part(LinearArgs& args, Epilogue epilogue, int in, int out, bool norm, const char* bias);
  int64_t take(int64_t bytes);
  void run() final;

  DecoderLayerArgs args_;
  std::vector<Part> parts_;
  int64_t bytes_ = 0;  // of the weights of the parts so far
};

}  // namespace edgellama
