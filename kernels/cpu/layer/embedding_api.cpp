#include "layer/embedding.h"

#include "base/kernels.h"
#include "base/pool.h"
#include "linear/linear.h"

namespace edgellama {

bool embedding_sizes_fit(const EmbeddingArgs& args) {
  const int format = static_cast<int>(args.format);
  return format >= 0 && format < kFormatCount && is_size(args.rows) && is_size(args.tokens) &&
         is_size(static_cast<long>(args.rows) * args.tokens) && is_size(args.vocabulary) && is_size(args.width);
}

int64_t wrong_token(const EmbeddingArgs& args) {
  for (int b = 0; b < args.rows; ++b)
    for (int s = 0; s < args.length[b]; ++s) {
      const int at = b * args.tokens + s;
      if (args.ids[at] < 0 || args.ids[at] >= args.vocabulary) return at;
    }
  return -1;
}

}  // namespace edgellama

// Runs one Embedding over plain arrays, for the tests. Shapes as in EmbeddingArgs. Returns 0, -1 if this CPU or this
// build lacks the variant, or -2 for a wrong argument.
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
  if (!embedding_sizes_fit(args) || !ids || !weight || !length || !y || wrong_length(length, rows, tokens) >= 0 ||
      wrong_token(args) >= 0)
    return -2;
  ThreadPool::instance().run(threads, [&](Worker& me) { table->embedding(args, me); });
  return 0;
}
