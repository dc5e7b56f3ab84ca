// The limits of a chip, and the plan of a product of the high-level Matmul: plain C++, without CANN's headers.
#ifndef EDGELLAMA_CUBE_PLAN_H
#define EDGELLAMA_CUBE_PLAN_H

#include <algorithm>
#include <cstdint>
#include <string>

namespace edgellama {

struct ChipLimits {
    bool splitCores;     // 910B: separate cube and vector cores
    bool matmulNeedsUb;  // 310P: Matmul needs unified buffer for its result
    int64_t cubeCores, vectorCores;
    int64_t ub, l1, l0a, l0b, l0c;  // bytes
    int64_t skippedWorkspace;       // bytes at the start of the workspace that the kernel does not get
};

// One product [m, k] x [k, n] of the high-level Matmul on one core. Operands are float16, the result is float32 unless halfResult.
struct CubePlan {
    int64_t m, n, k;
    int64_t rowN;                 // row length of the whole result, of which the n columns are a part
    int64_t baseM, baseN, baseK;  // the block that the cube multiplies at a time
    int64_t stepK;                // blocks of K that are in L1 at the same time
    bool transposed;              // the right matrix is stored as [n, k]
    int64_t l1, l0c, ub;          // bytes that Matmul may use; ub: 0 if the chip does not need it
    bool rightInFractals = false;  // the right matrix is stored in columns of fractals (NZ)
    bool halfResult = false;       // the result is float16
    int64_t depth = 1;            // steps of K that L1 has room for; with 2, loads overlap with the cube's work
};

constexpr int64_t kFractal = 16;         // Matmul's smallest block
constexpr int64_t kMegabyte = 1024 * 1024;
constexpr int64_t kUbMargin = 8 * 1024;  // bytes that some vector calls of the 910B reserve

inline int64_t CeilDiv(int64_t value, int64_t step) { return (value + step - 1) / step; }
inline int64_t CeilTo(int64_t value, int64_t step) { return CeilDiv(value, step) * step; }

// Bytes that the wrapper that CANN generates around a kernel skips at the start of the workspace: RESERVED_WORKSPACE of
// asc-devkit's kernel_utils_constants.h for architecture 2002 (310P), and for 2201 and 3002 (910B, 310B).
inline int64_t SkippedWorkspace(bool is310p) { return (is310p ? 2 : 16) * kMegabyte; }

// Bytes of workspace to reserve for a kernel that uses kernelBytes. libraryBytes: what GetLibApiWorkSpaceSize returns.
// On the 310B that is 2 MB, less than what the wrapper skips.
inline int64_t WorkspaceBytes(const ChipLimits& chip, int64_t kernelBytes, int64_t libraryBytes) {
    return kernelBytes + std::max(libraryBytes, chip.skippedWorkspace);
}

// Sets the number of blocks of a launch that multiplies matrices. With split cores, a block is a cube core with its
// vectorCores / cubeCores workers; `workers` is then rounded up to whole blocks.
inline void PlanBlocks(const ChipLimits& chip, int64_t* workers, int64_t* blocks) {
    const int64_t each = chip.splitCores ? chip.vectorCores / chip.cubeCores : 1;
    *blocks = CeilDiv(*workers, each);
    *workers = *blocks * each;
}

// Plans a product with the largest baseK, a multiple of 16 up to 128, whose double-buffered blocks fit L0A and L0B.
// stepK covers the whole of K. baseK is 0 if no block fits.
inline CubePlan PlanCube(int64_t m, int64_t n, int64_t k, int64_t baseM, int64_t baseN, bool transposed,
                         const ChipLimits& chip) {
    CubePlan plan{m, n, k, n, baseM, baseN, std::min<int64_t>(CeilTo(k, kFractal), 128), 0, transposed,
                  chip.l1, chip.l0c, 0};
    plan.baseK = std::min({plan.baseK, chip.l0a / (4 * baseM) / kFractal * kFractal,
                           chip.l0b / (4 * baseN) / kFractal * kFractal});
    plan.stepK = plan.baseK > 0 ? CeilDiv(k, plan.baseK) : 0;
    return plan;
}

// Bytes of L1, of L0C and of unified buffer that one product needs. The unified buffer is what MatmulGetTmpBufSize
// returns on the 310P: 2 * transLength, where transLength is the largest block of the three matrices. The operands'
// blocks have one more column of fractals, which avoids bank conflicts between rows.
inline int64_t CubeL1(const CubePlan& p) { return (p.baseM + p.baseN) * p.baseK * p.stepK * p.depth * 2; }
inline int64_t CubeL0c(const CubePlan& p) { return p.baseM * p.baseN * 4; }
inline int64_t CubeUb(const CubePlan& p) {
    const int64_t left = p.baseM * (p.baseK + kFractal) * 2;
    const int64_t right = (p.baseN * p.baseK + kFractal * (p.transposed ? p.baseN : p.baseK * p.stepK)) * 2;
    return 2 * std::max({left, right, CubeL0c(p)});
}

// Whether a product fits the memory that it may use.
inline bool CubeFits(const CubePlan& p) {
    return p.baseK >= kFractal && CubeL1(p) <= p.l1 && CubeL0c(p) <= p.l0c && (p.ub == 0 || CubeUb(p) <= p.ub);
}

}  // namespace edgellama

#endif
