// A decoder layer as one region of the thread pool: two norms, attention and MLP with their residuals.
// kernels/reference.py (decoder_layer) defines it.
#pragma once

#include "attention/attention.h"
#include "linear/linear.h"

namespace edgellama {

// The four linear layers and attention. The caller sets sizes, weights, gamma, bias, caches, rotary tables, start,
// length, and the layer's input and output: qkv.x and down.y, both [B, S, E]. run_decoder_layer sets the arrays between
// the parts.
struct DecoderLayerArgs {
  LinearArgs qkv, o, gate_up, down;
  AttentionArgs attention = {};
  // [E]: gammas of the norms of what attention and MLP add to the residual stream; nullptr: it is added as it is, and o
  // and down have Epilogue::residual_add. Both or none.
  const float *attention_norm = nullptr, *mlp_norm = nullptr;
  float norm_eps = 0;

  // run_decoder_layer sets these: the sum, which is the layer's output, and the results of o and down before their norm.
  float *stream = nullptr, *added = nullptr;
};

// Runs one layer on the thread pool. The caller has checked sizes, starts and lengths (attention_size_error,
// attention_range_error).
EDGELLAMA_EXPORT void run_decoder_layer(DecoderLayerArgs args, Isa isa, int threads);

}  // namespace edgellama
