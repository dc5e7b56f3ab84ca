// The table of kernels that one instruction-set variant provides.
#pragma once

#include "cpu_features.h"
#include "pool.h"

#if defined(__GNUC__)
#define EDGELLAMA_API extern "C" __attribute__((visibility("default")))
#endif

namespace edgellama {

struct AttentionArgs;
struct LinearArgs;

struct Kernels {
  void (*linear)(const LinearArgs&, Worker&);
  void (*fused_attention)(const AttentionArgs&, Worker&);
};

// The table of an available variant; nullptr if this build or this CPU lacks it.
const Kernels* kernels(Isa isa);

}  // namespace edgellama
