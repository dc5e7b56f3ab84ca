// Reports that a kernel did something on which a chip would fail: throws an exception, which the launcher catches.
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

// A word of the message, and the source line of the check. The constructor captures the caller's file and line.
struct CheckSite {
    CheckSite(const char* what, const char* inFile = __builtin_FILE(), int atLine = __builtin_LINE())
        : word(what), file(inFile), line(atLine) {}
    const char *word, *file;
    int line;
};

// Throws Violation("[kind] message (file:line of the check)"). The kinds are: bounds, alignment, capacity, range,
// unsupported, queue, sync, race, overlap, uninitialised, readonly, matmul.
[[noreturn]] inline void Fail(const CheckSite& kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

inline void Fail(const CheckSite& kind, const char* format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const std::string file = kind.file;
    throw Violation("[" + std::string(kind.word) + "] " + text + " (" + file.substr(file.rfind('/') + 1) + ":" +
                    std::to_string(kind.line) + ")");
}

}  // namespace standin

#endif
