// Working memory of the thread that runs an operator: grown as needed, reused by every operator, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgellama {

// At least `bytes` bytes, valid until this thread asks again. Contents are undefined.
uint8_t* scratch(size_t bytes);

}  // namespace edgellama
