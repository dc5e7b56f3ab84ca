#include "layer/embedding.h"

#include "base/kernels.h"
#include "base/pool.h"

// Runs one Embedding over plain arrays, for the tests. Shapes as in EmbeddingArgs. Returns 0, or -1 if this CPU lacks
// the variant.
EDGELLAMA_API int edgellama_embedding(int isa, int threads, int format, int rows, int tokens, int vocabulary, int width,
                                      const int32_t* ids, const void* weight, const int32_t* length, float* y) {
  using namespace edgellama;
  const Kernels* table = kernels(static_cast<Isa>(isa));
  if (!table) return -1;
  EmbeddingArgs args;
  args.format = static_cast<Format>(format);
  args.rows = rows;
  args.tokens = tokens;
  args.vocabulary = vocabulary;
  args.width = width;
  args.weight = static_cast<const uint8_t*>(weight);
  args.ids = ids;
  args.length = length;
  args.y = y;
  ThreadPool::instance().run(threads, [&](Worker& me) { table->embedding(args, me); });
  return 0;
}
