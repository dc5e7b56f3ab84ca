// The one switch between the chips. Everything else in the kernels is the same source for all three.
#ifndef EDGELLAMA_CHIP_H
#define EDGELLAMA_CHIP_H

#if defined(__NPU_ARCH__)
#define EDGELLAMA_ARCH __NPU_ARCH__
#elif defined(__CCE_AICORE__) && __CCE_AICORE__ == 220  // compilers older than __NPU_ARCH__
#define EDGELLAMA_ARCH 2201
#elif defined(__CCE_AICORE__) && __CCE_AICORE__ == 200
#define EDGELLAMA_ARCH 2002
#elif defined(__CCE_AICORE__) && __CCE_AICORE__ == 300
#define EDGELLAMA_ARCH 3002
#else
#define EDGELLAMA_ARCH 0  // host passes of the device compiler see the kernels without an architecture
#endif

// 910B: cube and vector cores are apart, all vector cores can meet in SyncAll.
#define EDGELLAMA_SPLIT_CORES (EDGELLAMA_ARCH == 2201)
// 310P: Matmul moves its result through unified buffer that the kernel lends it.
#define EDGELLAMA_MATMUL_BORROWS_UB (EDGELLAMA_ARCH == 2002)

#endif
