// Runs the parts of a decoder layer, one after the other. Between two parts every thread waits for the others, which
// takes a few hundred nanoseconds. As operators of the graph, each part would cost microseconds of dispatch: the time
// to read 100 KB of weights, where a layer of a small model has 3.7 MB. While a thread waits, the memory already
// fetches the weights that the thread reads next (linear_ahead).
#include "layer/decoder_layer.h"

#include "base/pool.h"
#include "simd/simd.h"

namespace edgellama::EDGELLAMA_ISA {

void linear(const LinearArgs& args, Worker& me);
void linear_ahead(const LinearArgs& args, const Worker& me);
void fused_attention(const AttentionArgs& args, Worker& me);

namespace {

// Writes stream = before + added / rms(added) * gamma (arXiv:1910.07467) for this thread's share of the valid tokens.
void add_normed(const DecoderLayerArgs& a, const float* before, const float* gamma, const Worker& me) {
  const long width = a.down.shape.out, whole = width / kLanes * kLanes;
  const Range mine = share(me, a.qkv.count);
  for (long t = mine.begin; t < mine.end; ++t) {
    const long at = static_cast<long>(a.qkv.target[t]) * width;
    const float* x = a.added + at;
    F squares = broadcast(0.0f);
    for (long i = 0; i < whole; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (long i = whole; i < width; ++i) total += x[i] * x[i];
    const float factor = 1.0f / __builtin_sqrtf(total / static_cast<float>(width) + a.norm_eps);
    for (long i = 0; i < whole; i += kLanes)
      store(a.stream + at + i, load(before + at + i) + load(x + i) * broadcast(factor) * load(gamma + i));
    for (long i = whole; i < width; ++i) a.stream[at + i] = before[at + i] + x[i] * factor * gamma[i];
  }
}

}  // namespace

void decoder_layer(const DecoderLayerArgs& a, Worker& me) {
  linear(a.qkv, me);
  me.barrier();
  linear_ahead(a.o, me);
  fused_attention(a.attention, me);
  me.barrier();
  linear(a.o, me);
  linear_ahead(a.gate_up, me);
  me.barrier();
  if (a.attention_norm) {
    add_normed(a, a.qkv.x, a.attention_norm, me);
    me.barrier();
  }
  linear(a.gate_up, me);
  linear_ahead(a.down, me);
  me.barrier();
  linear(a.down, me);
  if (a.mlp_norm) {
    me.barrier();
    add_normed(a, a.stream, a.mlp_norm, me);
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
