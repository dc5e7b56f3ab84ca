// Compiled once per instruction set: hands out that variant's kernels.
#include "kernels.h"

namespace edgellama::EDGELLAMA_ISA {

void embedding(const EmbeddingArgs& args, Worker& me);
void linear(const LinearArgs& args, Worker& me);
void pack(const PackArgs& args, Worker& me);
void fused_attention(const AttentionArgs& args, Worker& me);
void decoder_layer(const DecoderLayerArgs& args, Worker& me);

const Kernels& variant() {
  static constexpr Kernels table = {embedding, linear, pack, fused_attention, decoder_layer};
  return table;
}

}  // namespace edgellama::EDGELLAMA_ISA
