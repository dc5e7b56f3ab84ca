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
  LinearArgs args =
      plain_linear(format, epilogue, rows, tokens, in, out, eps, x, weight, gamma, bias, residual, length, y);
  if (!linear_args_fit(args) || !is_size(rank) || !a || !b || !adapted) return -2;
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
