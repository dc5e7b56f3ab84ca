// The high-level Matmul as all kernels use it.
#ifndef EDGELLAMA_CUBE_MATMUL_H
#define EDGELLAMA_CUBE_MATMUL_H

#include "chip.h"
#include "kernel_operator.h"
#include "lib/matmul_intf.h"

namespace edgellama {

#if EDGELLAMA_MATMUL_BORROWS_UB
// The 310P has no copy that rearranges a matrix, so Matmul would read global memory in bursts of 32 bytes. With
// isVecND2NZ it reads whole rows of a block into the lent unified buffer, and the vector unit rearranges them. The
// template stays Norm.
inline constexpr MatmulConfig kMatmulConfig = GetNormalConfig(false, false, true);
template <class A, class B, class C>
using CubeMatmul = AscendC::Matmul<A, B, C, C, kMatmulConfig>;
#else
template <class A, class B, class C>
using CubeMatmul = AscendC::Matmul<A, B, C, C>;
#endif

}  // namespace edgellama

#endif
