#include <algorithm>

#include "base/kernels.h"
#include "base/pool.h"
#include "base/scratch.h"
#include "linear/linear.h"

namespace edgellama {

bool linear_sizes_fit(const LinearShape& shape) {
  const int format = static_cast<int>(shape.format), epilogue = static_cast<int>(shape.epilogue);
  return format >= 0 && format < kFormatCount && epilogue >= 0 && epilogue <= static_cast<int>(Epilogue::geglu) &&
         is_size(shape.rows) && is_size(shape.tokens) && is_size(static_cast<long>(shape.rows) * shape.tokens) &&
         is_size(shape.in) && is_size(shape.out);
}

int wrong_length(const int32_t* length, int rows, int tokens) {
  for (int b = 0; b < rows; ++b)
    if (length[b] < 0 || length[b] > tokens) return b;
  return -1;
}

LinearArgs plain_linear(int format, int epilogue, int rows, int tokens, int in, int out, float eps, const float* x,
                        const void* weight, const float* gamma, const float* bias, const float* residual,
                        const int32_t* length, float* y) {
  LinearArgs args;
  args.shape.format = static_cast<Format>(format);
  args.shape.epilogue = static_cast<Epilogue>(epilogue);
  args.shape.rows = rows;
  args.shape.tokens = tokens;
  args.shape.in = in;
  args.shape.out = out;
  args.shape.eps = eps;
  args.x = x;
  args.weight = static_cast<const uint8_t*>(weight);
  args.gamma = gamma;
  args.bias = bias;
  args.residual = residual;
  args.length = length;
  args.y = y;
  return args;
}

bool linear_args_fit(const LinearArgs& args) {
  const LinearShape& shape = args.shape;
  return linear_sizes_fit(shape) && args.x && args.weight && args.length && args.y &&
         wrong_length(args.length, shape.rows, shape.tokens) < 0 &&
         (shape.epilogue != Epilogue::residual_add || args.residual);
}

size_t linear_scratch_bytes(const LinearShape& shape, int count, int threads) {
  // A call may have fewer valid rows than `count`. If they are few, each thread prepares its own copy, which can need
  // more memory than all rows prepared once.
  const int few = static_cast<int>(std::min<long>(count, RowScratch::kAlone / padded_k(shape.in)));
  const RowScratch rows(shape.format, count, shape.in), alone(shape.format, few, shape.in);
  const TileScratch tiles(count, shape.in);
  const WideScratch wide(count, shape.in);
  const ByteScratch bytes(count, shape.in);
  const long projection = threads * kProjectedRows * padded_k(shape.in) * 4;
  return static_cast<size_t>(
      std::max({projection, rows.shared() + threads * rows.own(), alone.shared() + threads * alone.own(),
                tiles.shared() + threads * tiles.own(), wide.shared() + threads * wide.own(),
                bytes.shared() + threads * bytes.own()}));
}

void choose_rows(LinearArgs& args, int32_t* index) {
  const LinearShape& shape = args.shape;
  int32_t* const target = index + shape.rows * shape.tokens;
  args.source = index;
  args.target = target;
  args.count = args.rounded = 0;
  const auto choose = [&](bool rounded) {
    for (int b = 0; b < shape.rows; ++b) {
      const int n = args.length[b];
      if (rounded != (shape.rounds() && n > kFineTokens)) continue;
      for (int s = shape.last_only ? std::max(n - 1, 0) : 0; s < n; ++s) {
        index[args.count] = b * shape.tokens + s;
        target[args.count++] = shape.last_only ? b : b * shape.tokens + s;
      }
    }
  };
  choose(true);
  args.rounded = args.count;
  choose(false);
}

void run_linear(LinearArgs args, Isa isa, int threads) {
  const LinearShape& shape = args.shape;
  const int positions = shape.rows * shape.tokens;
  const size_t index_bytes = static_cast<size_t>(round_up(2L * positions * 4, 64));
  uint8_t* memory = scratch(index_bytes + linear_scratch_bytes(shape, positions, threads));
  choose_rows(args, reinterpret_cast<int32_t*>(memory));
  for (int b = 0; b < shape.rows; ++b)
    if (shape.last_only && args.length[b] == 0) std::fill_n(args.y + static_cast<long>(b) * shape.out, shape.out, 0.0f);
  if (args.count == 0) return;
  args.scratch = memory + index_bytes;
  const auto kernel = kernels(isa)->linear;
  ThreadPool::instance().run(threads, [&](Worker& me) { kernel(args, me); });
}

}  // namespace edgellama

// Runs one Linear over plain arrays, for the tests. Shapes as in LinearArgs. Returns 0, -1 if this CPU or this build
// lacks the variant, or -2 for a wrong argument.
EDGELLAMA_API int edgellama_linear(int isa, int threads, int format, int epilogue, int rows, int tokens, int in,
                                   int out, int last_only, float eps, const float* x, const void* weight,
                                   const float* gamma, const float* bias, const float* residual,
                                   const int32_t* length, float* y) {
  using namespace edgellama;
  if (!kernels(static_cast<Isa>(isa))) return -1;
  LinearArgs args =
      plain_linear(format, epilogue, rows, tokens, in, out, eps, x, weight, gamma, bias, residual, length, y);
  args.shape.last_only = last_only != 0;
  if (!linear_args_fit(args)) return -2;
  run_linear(args, static_cast<Isa>(isa), threads);
  return 0;
}
