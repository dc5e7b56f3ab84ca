// Runs the parts of a decoder layer, one after the other. Between two parts every thread waits for the others, which
// takes a few hundred nanoseconds. As operators of the graph, each part would cost microseconds of dispatch: the time
// to read 100 KB of weights, where a layer of a small model has 3.7 MB. While a thread waits, the memory already
// fetches the weights that the thread reads next (linear_ahead).
#include "layer/decoder_layer.h"

#include "base/pool.h"

namespace edgellama::EDGELLAMA_ISA {

void linear(const LinearArgs& args, Worker& me);
void linear_ahead(const LinearArgs& args, const Worker& me);
void fused_attention(const AttentionArgs& args, Worker& me);

void decoder_layer(const DecoderLayerArgs& a, Worker& me) {
  linear(a.qkv, me);
  me.barrier();
  linear_ahead(a.o, me);
  fused_attention(a.attention, me);
  me.barrier();
  linear(a.o, me);
  linear_ahead(a.gate_up, me);
  me.barrier();
  linear(a.gate_up, me);
  linear_ahead(a.down, me);
  me.barrier();
  linear(a.down, me);
}

}  // namespace edgellama::EDGELLAMA_ISA
