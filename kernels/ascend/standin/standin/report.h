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

// A word, and the line that says it: which check it was.
struct Said {
    Said(const char* what, const char* inFile = __builtin_FILE(), int atLine = __builtin_LINE())
        : word(what), file(inFile), line(atLine) {}
    const char *word, *file;
    int line;
};

// Throws Violation("[kind] message (file:line of the check)"). The kinds are: bounds, alignment, capacity, range,
// unsupported, queue, sync, race, overlap, uninitialised, readonly, matmul.
[[noreturn]] inline void Fail(const Said& kind, const char* format, ...) __attribute__((format(printf, 2, 3)));

inline void Fail(const Said& kind, const char* format, ...) {
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
