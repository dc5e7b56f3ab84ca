// The limits of a chip, and how a product of the high-level Matmul is cut for them: plain C++, as all tiling is.
#ifndef EDGELLAMA_CUBE_PLAN_H
#define EDGELLAMA_CUBE_PLAN_H

#include <algorithm>
#include <cstdint>
#include <string>

namespace edgellama {

struct ChipLimits {
    bool splitCores;     // 910B: cube and vector cores apart, and a SyncAll that needs no workspace
    bool matmulNeedsUb;  // 310P
    int64_t cubeCores, vectorCores;
    int64_t ub, l1, l0a, l0b, l0c;  // bytes
};

// One product [m, k] x [k, n] of the high-level Matmul on one core; `rowN`: the row length of the whole result.
struct CubePlan {
    int64_t m, n, k, rowN, baseM, baseN, baseK;
    int64_t stepK;        // blocks of K that lie in L1 together
    bool transposed;      // the right matrix is stored as [n, k]
    int64_t l1, l0c, ub;  // bytes that Matmul is given; ub: 0 where the chip does not need it
};

constexpr int64_t kFractal = 16;         // Matmul's smallest block
constexpr int64_t kUbMargin = 8 * 1024;  // some vector calls of the 910B reserve this much for themselves

inline int64_t CeilTo(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
inline int64_t CeilDiv(int64_t value, int64_t step) { return (value + step - 1) / step; }

// The largest inner block, in multiples of 16 up to 128, whose two halves of a double buffer fit L0A and L0B. The whole
// of K lies in L1.
inline CubePlan PlanCube(int64_t m, int64_t n, int64_t k, int64_t baseM, int64_t baseN, bool transposed,
                         const ChipLimits& chip) {
    CubePlan plan{m, n, k, n, baseM, baseN, std::min<int64_t>(CeilTo(k, kFractal), 128), 0, transposed,
                  chip.l1, chip.l0c, 0};
    plan.baseK = std::min({plan.baseK, chip.l0a / (4 * baseM) / kFractal * kFractal,
                           chip.l0b / (4 * baseN) / kFractal * kFractal});
    plan.stepK = plan.baseK > 0 ? CeilDiv(k, plan.baseK) : 0;
    return plan;
}

// Bytes of L1, of L0C and of unified buffer that one product takes. The last is what MatmulGetTmpBufSize asks for on
// the 310P, twice Matmul's transLength: the largest block of the three matrices, those of the operands with a column of
// fractals more, by which Matmul keeps rows out of one another's memory banks.
inline int64_t CubeL1(const CubePlan& p) { return (p.baseM + p.baseN) * p.baseK * p.stepK * 2; }
inline int64_t CubeL0c(const CubePlan& p) { return p.baseM * p.baseN * 4; }
inline int64_t CubeUb(const CubePlan& p) {
    const int64_t left = p.baseM * (p.baseK + kFractal) * 2;
    const int64_t right = (p.baseN * p.baseK + kFractal * (p.transposed ? p.baseN : p.baseK * p.stepK)) * 2;
    return 2 * std::max({left, right, CubeL0c(p)});
}

// Whether a product fits what it is given.
inline bool CubeFits(const CubePlan& p) {
    return p.baseK >= kFractal && CubeL1(p) <= p.l1 && CubeL0c(p) <= p.l0c && (p.ub == 0 || CubeUb(p) <= p.ub);
}

}  // namespace edgellama

#endif
