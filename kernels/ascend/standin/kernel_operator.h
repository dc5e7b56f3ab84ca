// The main header of the stand-in: Ascend C kernels include it on an ordinary host with g++.
//
// It is written from the public documentation of the interface. It implements the subset that this project's kernels
// use, and reports an error where a chip would fail (report.h has the kinds). It measures no cycles and no bandwidth.
#ifndef EDGELLAMA_STANDIN_KERNEL_OPERATOR_H
#define EDGELLAMA_STANDIN_KERNEL_OPERATOR_H

#include "standin/copy.h"

#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR std::uint8_t*

enum KernelMetaType {
    KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_AIC_ONLY, KERNEL_TYPE_MIX_AIV_1_0, KERNEL_TYPE_MIX_AIC_1_0,
    KERNEL_TYPE_MIX_AIC_1_1, KERNEL_TYPE_MIX_AIC_1_2, KERNEL_TYPE_AICORE
};

namespace standin {

inline thread_local std::uint64_t tTilingKey = 0;

inline void CheckKernelType(KernelMetaType type) {
    const bool unified = type == KERNEL_TYPE_AICORE;
    if (!kChip.kernelTypes || unified == kChip.splitCores) {
        Fail("unsupported", "this kernel type does not exist on the %s", kChip.name);
    }
}

}  // namespace standin

#define KERNEL_TASK_TYPE_DEFAULT(type) standin::CheckKernelType(type)
#define KERNEL_TASK_TYPE(key, type) standin::CheckKernelType(type)
#define REGISTER_TILING_DEFAULT(type) static_assert(sizeof(type) % 8 == 0, "its size must be a multiple of 8 bytes")

// CANN compiles a kernel in two forms. With dynamic shapes, the tiling data and the key come at the launch. With static
// shapes (each gear of a converted graph), both are constants of the source, here of the header constant_tiling.h that
// standin_library.py writes. The data is then a constexpr structure, on the 310P a variable.
#ifdef EDGELLAMA_STANDIN_CONSTANT_TILING
#include "constant_tiling.h"  // standin::kTilingKey, standin::kTilingBytes: a structure of bytes
#define TILING_KEY_IS(key) (standin::kTilingKey == (key))
#if __NPU_ARCH__ == 2002
#define EDGELLAMA_STANDIN_TILING_STORAGE
#else
#define EDGELLAMA_STANDIN_TILING_STORAGE static constexpr
#endif
#define GET_TILING_DATA_WITH_STRUCT(type, name, address) \
    (void)(address);                                     \
    EDGELLAMA_STANDIN_TILING_STORAGE type name = __builtin_bit_cast(type, standin::kTilingBytes)
#else
#define TILING_KEY_IS(key) (standin::tTilingKey == (key))
#define GET_TILING_DATA_WITH_STRUCT(type, name, address) \
    type name;                                           \
    std::memcpy(static_cast<void*>(&name), (address), sizeof(type))
#endif

#endif
