// Fuzzes the argument checks of the kernels with libFuzzer: the C interface for Python, and the operators for MindSpore
// Lite. Every buffer has exactly the size that the arguments claim. So the address sanitizer finds a wrong argument that
// a check accepts, and the undefined-behaviour sanitizer finds sizes whose products overflow. check.sh runs this.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "base/abi.h"
#include "base/export.h"
#include "linear/weight_format.h"
#include "lite/fuzz_lite.h"
#include "sampling/penalties.h"
#include "sampling/sampling.h"

EDGELLAMA_API size_t edgellama_attention_scratch_bytes(const edgellama::AttentionArgs* args);
EDGELLAMA_API int edgellama_attention(const edgellama::AttentionArgs* args, int isa, int repeats, char* message,
                                      size_t size);
EDGELLAMA_API int edgellama_linear(int isa, int threads, int format, int epilogue, int rows, int tokens, int in,
                                   int out, int last_only, float eps, const float* x, const void* weight,
                                   const float* gamma, const float* bias, const float* residual,
                                   const int32_t* length, float* y);
EDGELLAMA_API int edgellama_embedding(int isa, int threads, int format, int rows, int tokens, int vocabulary, int width,
                                      const int32_t* ids, const void* weight, const int32_t* length, float* y);
EDGELLAMA_API int edgellama_pack(int isa, int threads, int format, long n, long k, const float* w,
                                 const uint16_t* scales, const int8_t* zeros, const uint8_t* q, void* out);

namespace edgellama {
namespace {

constexpr double kMostBytes = 1 << 22;  // of all buffers of a call; larger calls are left out
constexpr double kMostWork = 1 << 22;   // multiplications of a call

void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "ERROR: %s\n", what);
  std::abort();
}

// The bytes of the sizes' product; 0 if a size is negative or 0, as a caller with no elements would pass.
double bytes_of(double element, std::initializer_list<long> sizes) {
  for (const long size : sizes) element *= size > 0 ? static_cast<double>(size) : 0.0;
  return element;
}

// The buffers of one call. `fits` becomes false if they would be too large; then none may be used.
class Buffers {
 public:
  explicit Buffers(FuzzInput& input) : input_(input) {}
  template <typename T>
  T* take(double bytes) {
    total_ += bytes;
    if (!fits()) return nullptr;
    const size_t size = static_cast<size_t>(bytes);
    void* const memory = ::operator new(size, std::align_val_t{64});
    owned_.emplace_back(memory);
    std::memset(memory, 0x2c, size);  // about 2.4e-12 as float32, 1/16 as float16
    return static_cast<T*>(memory);
  }
  int32_t* integers(double bytes) {
    int32_t* const values = take<int32_t>(bytes);
    for (size_t i = 0; values && i < static_cast<size_t>(bytes) / 4; ++i) values[i] = input_.value();
    return values;
  }
  bool fits() const { return total_ <= kMostBytes; }

 private:
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  FuzzInput& input_;
  double total_ = 0;
  std::vector<std::unique_ptr<void, Free>> owned_;
};

double packed(int format, long n, long k) {
  const double per = format == 0 ? 4 : format == 1 ? 2 : format == 2 ? 1.0625 : 0.59375;
  if (n <= 0 || k <= 0) return 0;
  if (n > kMostSize || k > kMostSize) return per * static_cast<double>(n) * static_cast<double>(k);
  return static_cast<double>(packed_bytes(static_cast<Format>(format), n, k));
}

void fuzz_linear(FuzzInput& in) {
  const int format = in.choice(kFormatCount), epilogue = in.choice(3), rows = in.size(), tokens = in.size();
  const int inner = in.size(), outer = in.size(), last = in.choice(2), isa = in.choice(1), threads = 1 + in.choice(2);
  Buffers buffers(in);
  const bool swiglu = epilogue == 2;
  const long panels = outer > 0 ? panel_count(outer) * (swiglu ? 2 : 1) : 0;
  const float* const x = buffers.take<float>(bytes_of(4, {rows, tokens, inner}));
  const uint8_t* const weight = buffers.take<uint8_t>(packed(format, panels * kPanel, inner));
  const float* const gamma = in.choice(2) ? buffers.take<float>(bytes_of(4, {inner})) : nullptr;
  const float* const bias = in.choice(2) ? buffers.take<float>(bytes_of(4, {panels, kPanel})) : nullptr;
  const float* const residual = in.choice(4) ? buffers.take<float>(bytes_of(4, {rows, tokens, outer})) : nullptr;
  float* const y = buffers.take<float>(bytes_of(4, {rows, last ? 1 : tokens, outer}));
  const int32_t* const length = buffers.integers(bytes_of(4, {rows}));
  if (!buffers.fits() || bytes_of(1, {rows, tokens, inner, outer}) > kMostWork) return;
  const int code = edgellama_linear(isa, threads, format, epilogue, rows, tokens, inner, outer, last, in.real(), x, weight,
                                    gamma, bias, residual, length, y);
  const bool known = format >= 0 && format < kFormatCount && epilogue >= 0 && epilogue < 3;
  const bool positive = rows > 0 && tokens > 0 && inner > 0 && outer > 0;
  require(code != 0 || (isa == 0 && known && positive), "linear accepts a wrong argument");
}

void fuzz_embedding(FuzzInput& in) {
  const int format = in.choice(kFormatCount), rows = in.size(), tokens = in.size(), vocabulary = in.size();
  const int width = in.size(), isa = in.choice(1), threads = 1 + in.choice(2);
  Buffers buffers(in);
  const uint8_t* const weight = buffers.take<uint8_t>(packed(format, vocabulary, width));
  float* const y = buffers.take<float>(bytes_of(4, {rows, tokens, width}));
  const int32_t* const length = buffers.integers(bytes_of(4, {rows}));
  const int32_t* const ids = buffers.integers(bytes_of(4, {rows, tokens}));
  if (!buffers.fits()) return;
  const int code = edgellama_embedding(isa, threads, format, rows, tokens, vocabulary, width, ids, weight, length, y);
  const bool positive = rows > 0 && tokens > 0 && vocabulary > 0 && width > 0;
  require(code != 0 || (isa == 0 && format >= 0 && format < kFormatCount && positive), "embedding accepts a wrong size");
}

void fuzz_pack(FuzzInput& in) {
  const int format = in.choice(kFormatCount), isa = in.choice(1), threads = 1 + in.choice(2);
  const long n = in.size(), k = in.size();
  Buffers buffers(in);
  const float* const w = in.choice(2) ? buffers.take<float>(bytes_of(4, {n, k})) : nullptr;
  const long count = k > 0 ? scale_count(static_cast<Format>(format), std::min<long>(k, kMostSize)) : 0;
  const uint16_t* const scales = in.choice(2) ? buffers.take<uint16_t>(bytes_of(2, {n, count})) : nullptr;
  const int8_t* const zeros = in.choice(2) ? buffers.take<int8_t>(bytes_of(1, {n, count})) : nullptr;
  const uint8_t* const q = in.choice(2) ? buffers.take<uint8_t>(bytes_of(1, {n, k})) : nullptr;
  uint8_t* const out = buffers.take<uint8_t>(packed(format, n, k));
  if (!buffers.fits() || bytes_of(1, {n, k}) > kMostWork / 64) return;
  edgellama_pack(isa, threads, format, n, k, w, scales, zeros, q, out);
}

void fuzz_attention(FuzzInput& in) {
  AttentionArgs a = {};
  a.rows = in.size();
  a.tokens = in.size();
  a.heads = in.size();
  a.groups = in.size();
  a.head_dim = in.size();
  a.capacity = in.size();
  a.positions = in.choice(4) ? a.capacity : in.size();
  a.window = in.choice(2) ? 0 : in.value();
  a.scale = in.real();
  a.query_beta = in.choice(2) ? 0 : in.real();
  a.query_period = in.value();
  const int cache = in.choice(3);
  a.cache = static_cast<CacheType>(cache);
  a.threads = in.choice(8) ? 1 : in.value();
  const int width = cache == 0 ? 4 : cache == 1 ? 2 : 1;
  const long heads = static_cast<long>(a.heads) + 2L * a.groups;
  Buffers buffers(in);
  a.qkv = buffers.take<float>(bytes_of(4, {a.rows, a.tokens, heads, a.head_dim}));
  a.cos = buffers.take<float>(bytes_of(4, {a.positions, a.head_dim / 2}));
  a.sin = buffers.take<float>(bytes_of(4, {a.positions, a.head_dim / 2}));
  a.start = buffers.integers(bytes_of(4, {a.rows}));
  a.length = buffers.integers(bytes_of(4, {a.rows}));
  a.k_cache = buffers.take<uint8_t>(bytes_of(width, {a.rows, a.groups, a.capacity, a.head_dim}));
  a.v_cache = buffers.take<uint8_t>(bytes_of(width, {a.rows, a.groups, a.capacity, a.head_dim}));
  if (in.choice(2) || cache == 2) {
    a.k_scale = buffers.take<uint16_t>(bytes_of(2, {a.rows, a.groups, a.capacity}));
    a.v_scale = buffers.take<uint16_t>(bytes_of(2, {a.rows, a.groups, a.capacity}));
  }
  a.out = buffers.take<float>(bytes_of(4, {a.rows, a.tokens, a.heads, a.head_dim}));
  const size_t scratch = edgellama_attention_scratch_bytes(&a);
  a.scratch = buffers.take<uint8_t>(static_cast<double>(scratch));
  if (!buffers.fits() || bytes_of(1, {a.rows, a.tokens, a.heads, a.head_dim, a.capacity}) > kMostWork) return;
  std::memset(a.scratch, 0, scratch);
  char message[200];
  const size_t room = in.choice(3) ? sizeof message : static_cast<size_t>(in.choice(3));
  const int code = edgellama_attention(&a, in.choice(1), in.choice(2), message, room);
  require(code == 0 || code == 1, "attention returns an unknown code");
  require(code == 0 || room == 0 || std::memchr(message, 0, room), "attention's message has no end");
}

void fuzz_sampling(FuzzInput& in) {
  Sampling settings;
  settings.isa = in.choice(4) ? -1 : in.choice(2);
  settings.top_k = in.choice(2) ? 0 : in.value();
  settings.keep = in.choice(4) ? 1 : in.value();
  settings.temperature = in.choice(2) ? 1.0f : in.real();
  settings.top_p = in.choice(2) ? 1.0f : in.real();
  settings.min_p = in.choice(2) ? -1.0f : in.real();
  settings.typical_p = in.choice(2) ? 1.0f : in.real();
  const int n = in.size(), which = in.choice(3);
  Buffers buffers(in);
  float* const scores = buffers.take<float>(bytes_of(4, {n}));
  float* const out = buffers.take<float>(bytes_of(4, {n}));
  if (!buffers.fits()) return;
  for (int i = 0; i < n; ++i) scores[i] = in.real();
  if (which == 0) {
    const int token = edgellama_draw(&settings, scores, 0, n, in.choice(4) ? 0.999 : in.real());
    require(token >= -4 && token < std::max(n, 1), "draw returns a wrong token");
  } else if (which == 1) {
    const int code = edgellama_warp(&settings, scores, n, out);
    bool left = code != 0;
    for (int i = 0; code == 0 && i < n; ++i) left |= out[i] != -HUGE_VALF;
    require(left, "warp drops every token");
  } else {
    const int token = edgellama_likeliest(&settings, scores, 0, n);
    double normaliser = 0;
    edgellama_log_normaliser(&settings, scores, 0, n, &normaliser);
    require(token >= -4 && token < std::max(n, 1), "likeliest returns a wrong token");
  }
  std::vector<int64_t> text(static_cast<size_t>(in.choice(20)));
  for (int64_t& token : text) token = n > 0 ? in.choice(n) : 0;
  if (n > 0) edgellama_penalise(scores, 0, n, text.data(), static_cast<long>(text.size()), in.real(), in.value());
}

}  // namespace
}  // namespace edgellama

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  edgellama::FuzzInput input(data, size);
  switch (input.choice(8)) {
    case 0:
      edgellama::fuzz_linear(input);
      break;
    case 1:
      edgellama::fuzz_embedding(input);
      break;
    case 2:
      edgellama::fuzz_pack(input);
      break;
    case 3:
      edgellama::fuzz_attention(input);
      break;
    case 4:
      edgellama::fuzz_sampling(input);
      break;
    default:
      edgellama::fuzz_operator(input);
  }
  return 0;
}
