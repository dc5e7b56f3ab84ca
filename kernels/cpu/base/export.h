#pragma once

// Marks what libedgellama_lite.so uses from libedgellama_cpu.so.
#define EDGELLAMA_EXPORT __attribute__((visibility("default")))
// Marks the C interface that Python calls.
#define EDGELLAMA_API extern "C" EDGELLAMA_EXPORT
