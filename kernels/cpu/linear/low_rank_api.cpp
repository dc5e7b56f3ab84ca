// Runs one Linear with a low-rank addition over plain arrays, for the tests.
#include <vector>

#include "base/export.h"
#include "base/kernels.h"
#include "linear/linear.h"

// The arguments and the result are those of edgellama_linear, and:
//   rank, a [rank, in], b [columns of the weight, rank]: the addition
//   adapted [rows]: 1 for the rows that have it, 0 for the others
EDGELLAMA_API int edgellama_linear_low_rank(int isa, int threads, int format, int epilogue, int rows, int tokens,
                                            int in, int out, float eps, const float* x, const void* weight,
                                            const float* gamma, const float* bias, const float* residual,
                                            const int32_t* length, float* y, int rank, const float* a, const float* b,
                                            const int32_t* adapted) {
  using namespace edgellama;
  if (!kernels(static_cast<Isa>(isa))) return -1;
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
  if (!linear_sizes_fit(args.shape) || !is_size(rank) || !x || !weight || !length || !y || !a || !b || !adapted ||
      wrong_length(length, rows, tokens) >= 0 || (args.shape.epilogue == Epilogue::residual_add && !residual))
    return -2;
  const StoredLowRank stored(rank, in, static_cast<int>(args.shape.panels()), a, b);
  std::vector<const LowRank*> of_row;
  for (int row = 0; row < rows; ++row) of_row.push_back(adapted[row] ? &stored.view() : nullptr);
  std::vector<float> projected(static_cast<size_t>(rows) * tokens * rank);
  args.low_rank = of_row.data();
  args.most_rank = rank;
  args.projected = projected.data();
  run_linear(args, static_cast<Isa>(isa), threads);
  return 0;
}
