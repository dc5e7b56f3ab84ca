// The table of kernels of one instruction-set variant, and how a caller gets it at run time.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/export.h"

namespace edgellama {

struct AttentionArgs;
struct DecoderLayerArgs;
struct EmbeddingArgs;
struct LinearArgs;
struct PackArgs;
struct ScorePasses;
class Worker;

struct Kernels {
  void (*embedding)(const EmbeddingArgs&, Worker&);
  void (*linear)(const LinearArgs&, Worker&);
  void (*pack)(const PackArgs&, Worker&);
  void (*fused_attention)(const AttentionArgs&, Worker&);
  void (*decoder_layer)(const DecoderLayerArgs&, Worker&);
  const ScorePasses* scores;
  uint32_t (*read)(const uint8_t* data, long bytes, long ahead);
};

// The table of a variant, or nullptr if this build or this CPU lacks it.
EDGELLAMA_EXPORT const Kernels* kernels(Isa isa);

// The last variant, in the order of enum class Isa, that this build and this CPU have and limit_isa allows: the fastest.
EDGELLAMA_EXPORT Isa best_isa();

// Lets best_isa() return no variant behind this one. For measurements: it affects what is loaded afterwards.
EDGELLAMA_EXPORT void limit_isa(Isa last);

}  // namespace edgellama
