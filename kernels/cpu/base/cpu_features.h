// The instruction sets for which the kernels are compiled, and which of them this CPU can run.
#pragma once

#include "base/export.h"

namespace edgellama {

// Ordered: on one architecture a variant needs everything that the variants before it need. ISAS in
// kernels/cpu/library.py repeats the order.
enum class Isa : int {
  portable = 0,
  neon = 1,     // Armv8.2-A with dot product and half floats
  avx2 = 2,     // AVX2, FMA, F16C
  avxvnni = 3,  // AVX2 with 256-bit VNNI
  avx512 = 4,   // AVX-512 F, BW, DQ, VL, VNNI, BF16
  amx = 5,      // as avx512, and AVX-512 FP16, AMX int8, AMX bf16
};
constexpr int kIsaCount = 6;

const char* isa_name(Isa isa);

// True if the CPU and the operating system support the variant. The first call also requests AMX's tile state from
// Linux, which AMX needs.
EDGELLAMA_EXPORT bool isa_available(Isa isa);

}  // namespace edgellama
