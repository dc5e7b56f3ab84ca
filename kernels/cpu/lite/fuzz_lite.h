// For fuzz_arguments.cpp: values from a fuzzer's bytes, and the operators without MindSpore Lite.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace edgellama {

// Values from the bytes of an input. After its end they are 0.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  // 0..count-1; rarely count, -1 or a huge number if `count` is small.
  int choice(int count) { return static_cast<int>(byte()) % count; }
  // A size: mostly 1..48, else a wrong one or one beyond what can be allocated.
  int size() {
    static constexpr int kOdd[] = {0,       -1,        1 << 24,   (1 << 24) + 1, 1 << 28, 1 << 30, 2147483647, -2147483647 - 1,
                                   1 << 16, 1 << 20, 64,        128,           255,     512,     1000,       65};
    const int chosen = byte();
    return chosen < 224 ? 1 + chosen % 48 : kOdd[chosen % 16];
  }
  // A length, a token id or another value: mostly small.
  int value() {
    static constexpr int kOdd[] = {-1, -2147483647 - 1, 2147483647, 1 << 24, 1 << 30, 255, 256, 1000};
    const int chosen = byte();
    return chosen < 240 ? chosen % 16 : kOdd[chosen % 8];
  }
  float real() {
    static constexpr float kReals[] = {1e-5f, 1, 0.5f, 0.9f, -1, 0, 2, 1e-30f, 1e30f, 3e38f, -3e38f, 0.25f, 1e-40f};
    const int chosen = byte() % 16;
    if (chosen < 13) return kReals[chosen];
    return chosen == 13 ? __builtin_nanf("") : chosen == 14 ? __builtin_inff() : -__builtin_inff();
  }
  std::string text() {
    std::string found;
    for (int left = byte() % 24; left > 0; --left) found += static_cast<char>(byte());
    return found;
  }

 private:
  const uint8_t* const data_;
  const size_t size_;
  size_t at_ = 0;
};

// Creates an operator from the attributes and shapes of the input, prepares it, and runs it if it accepts them.
void fuzz_operator(FuzzInput& input);

}  // namespace edgellama
