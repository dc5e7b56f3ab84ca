#include "linear/low_rank.h"

#include "linear/weight_format.h"

namespace edgellama {

StoredLowRank::StoredLowRank(int rank, int in, int panels, const float* a, const float* b)
    : a_(a, a + static_cast<size_t>(rank) * in) {
  panel_.reserve(panels);
  for (long p = 0; p < panels; ++p) {
    const float* const rows = b + p * kPanel * rank;
    int first = rank, last = 0;
    for (long i = 0; i < kPanel; ++i)
      for (int j = 0; j < rank; ++j)
        if (rows[i * rank + j] != 0.0f) {
          if (j < first) first = j;
          if (j >= last) last = j + 1;
        }
    if (last == 0) first = 0;
    panel_.push_back({first, last - first, static_cast<int64_t>(b_.size())});
    for (int j = first; j < last; ++j)
      for (long i = 0; i < kPanel; ++i) b_.push_back(rows[i * rank + j]);
  }
  view_ = {rank, in, panels, a_.data(), panel_.data(), b_.data()};
}

}  // namespace edgellama
