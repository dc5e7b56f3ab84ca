// The only switch between the chips. The rest of the kernels is the same source for all three.
#ifndef EDGELLAMA_CHIP_H
#define EDGELLAMA_CHIP_H

#if defined(__NPU_ARCH__)
#define EDGELLAMA_ARCH __NPU_ARCH__
#elif defined(__CCE_AICORE__) && __CCE_AICORE__ == 220  // older compilers, which do not define __NPU_ARCH__
#define EDGELLAMA_ARCH 2201
#elif defined(__CCE_AICORE__) && __CCE_AICORE__ == 200
#define EDGELLAMA_ARCH 2002
#elif defined(__CCE_AICORE__) && __CCE_AICORE__ == 300
#define EDGELLAMA_ARCH 3002
#else
#define EDGELLAMA_ARCH 0  // the host passes of the device compiler have no architecture
#endif

// 910B: cube cores and vector cores are separate. Matmul returns when its result is in global memory.
#define EDGELLAMA_SPLIT_CORES (EDGELLAMA_ARCH == 2201)
// 310P: Matmul needs unified buffer from the kernel for its result.
#define EDGELLAMA_MATMUL_BORROWS_UB (EDGELLAMA_ARCH == 2002)
// Not the 310B: MulAddDst of float16 into float32, and Brcb.
#define EDGELLAMA_MULTIPLIES_HALF_INTO_FLOAT (EDGELLAMA_ARCH != 3002)

#endif
