// A low-rank addition to a linear layer: y += B A x (LoRA, arXiv:2106.09685), in float32 whatever the format of the
// weights is. x is the input after the norm, and the sum is added before the bias and the epilogue. Each row of a call
// has its own addition, or none.
#pragma once

#include <cstdint>
#include <vector>

namespace edgellama {

// The matrices of one adapter for one linear layer, as the kernels read them.
struct LowRank {
  // The 16 columns of y of one panel of the weight. Ranks outside first .. first + count - 1 are zero there: q, k and v
  // are one weight, and each has matrices of its own.
  struct Panel {
    int32_t first, count;
    int64_t at;  // of the panel's [count, 16] in b
  };
  int rank = 0, in = 0, panels = 0;
  const float* a = nullptr;      // [rank, in]
  const Panel* panel = nullptr;  // [panels]
  const float* b = nullptr;
};

// Owns the arrays of a LowRank.
class StoredLowRank {
 public:
  StoredLowRank() = default;
  // a: [rank, in]; b: [16 * panels, rank], with the scale of the adapter in it. Both are copied.
  StoredLowRank(int rank, int in, int panels, const float* a, const float* b);
  StoredLowRank(StoredLowRank&&) = default;
  StoredLowRank& operator=(StoredLowRank&&) = default;
  const LowRank& view() const { return view_; }

 private:
  std::vector<float> a_, b_;
  std::vector<LowRank::Panel> panel_;
  LowRank view_;
};

}  // namespace edgellama
