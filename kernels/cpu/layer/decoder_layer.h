// A decoder layer: two norms, attention and MLP with their residuals, as one region of the pool.
// kernels/reference.py (decoder_layer) says what it means.
#pragma once

#include "attention/attention.h"
#include "linear/linear.h"

namespace edgellama {

// The four linear layers and attention. Sizes, weights, gamma, bias, caches, tables, start and length are the caller's;
// what passes between the parts is set by run_decoder_layer, but for qkv.x and down.y: the layer's input and output.
struct DecoderLayerArgs {
  LinearArgs qkv, o, gate_up, down;
  AttentionArgs attention = {};
};

// Runs one layer on the pool. Sizes, lengths and starts must have been checked.
EDGELLAMA_EXPORT void run_decoder_layer(DecoderLayerArgs args, Isa isa, int threads);

}  // namespace edgellama
