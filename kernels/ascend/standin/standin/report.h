// How the stand-in tells that a kernel did something a chip would punish: an exception, caught by the launcher.
#ifndef EDGELLAMA_STANDIN_REPORT_H
#define EDGELLAMA_STANDIN_REPORT_H

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace standin {

struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws Violation("[kind] message"). The kinds are: bounds, alignment, capacity, range, unsupported, queue, sync,
// race, overlap, uninitialised, readonly, matmul.
[[noreturn]] inline void Fail(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

inline void Fail(const char* kind, const char* format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    throw Violation("[" + std::string(kind) + "] " + text);
}

}  // namespace standin

#endif
