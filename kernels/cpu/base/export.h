#pragma once

// What the plugin library uses of the kernel library.
#define EDGELLAMA_EXPORT __attribute__((visibility("default")))
// The C interface for Python.
#define EDGELLAMA_API extern "C" EDGELLAMA_EXPORT
