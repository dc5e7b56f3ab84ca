// The parts of a decoder layer, one after the other. Between two parts every thread waits for the others, in a few
// hundred nanoseconds: as operators of the graph each would cost microseconds of dispatch, the time of reading 100 KB of
// weights, and a layer of a small model has 3.7 MB. While a thread waits, the memory brings what it reads next.
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
