// Working memory of the thread that runs an operator, reused by every operator, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/export.h"

namespace edgellama {

struct AttentionArgs;

// At least `bytes` bytes, valid until this thread asks again. Contents are undefined.
uint8_t* scratch(size_t bytes);

// The scratch that attention asks for: its own, zero-filled whenever the sizes change.
EDGELLAMA_EXPORT uint8_t* attention_scratch(const AttentionArgs& args);

}  // namespace edgellama
