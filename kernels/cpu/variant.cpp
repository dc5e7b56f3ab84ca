// Compiled once per instruction set: hands out that variant's kernels.
#include "kernels.h"

namespace edgellama::EDGELLAMA_ISA {

void embedding(const EmbeddingArgs& args, Worker& me);
void linear(const LinearArgs& args, Worker& me);
void pack(const PackArgs& args, Worker& me);
#if __has_include("attention.h")
void fused_attention(const AttentionArgs& args, Worker& me);
#endif

const Kernels& variant() {
  static constexpr Kernels table = {
      embedding,
      linear,
      pack,
#if __has_include("attention.h")
      fused_attention,
#else
      nullptr,
#endif
  };
  return table;
}

}  // namespace edgellama::EDGELLAMA_ISA
