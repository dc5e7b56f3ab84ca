// Which of the built instruction-set variants this CPU can run.
#pragma once

#include "base/export.h"

namespace edgellama {

// Ordered: a variant includes what the ones before it on the same architecture need.
enum class Isa : int {
  portable = 0,
  neon = 1,     // Armv8.2-A with dot product and half floats
  avx2 = 2,     // AVX2, FMA, F16C
  avxvnni = 3,  // AVX2 with 256-bit VNNI
  avx512 = 4,   // AVX-512 F, BW, DQ, VL, VNNI, BF16
  amx = 5,      // AVX-512 as above, AVX-512 FP16, AMX int8 and bf16
};
constexpr int kIsaCount = 6;

const char* isa_name(Isa isa);

// True if this build holds the variant and CPU and kernel support it. Asking for amx also asks Linux for its state.
EDGELLAMA_EXPORT bool isa_available(Isa isa);

// The best available variant.
EDGELLAMA_EXPORT Isa best_isa();

}  // namespace edgellama
