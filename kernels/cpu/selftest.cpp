// A test driver that needs only the kernels, for the sanitizer builds and for other CPUs in an emulator:
//   selftest kernels   compares every variant that this CPU has with the portable one. Buffers have exactly the needed
//                      size, so that the address sanitizer finds a read past the end of any of them.
//   selftest pool      runs regions of the thread pool from several callers.
//   selftest           does both.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "attention/attention.h"
#include "base/kernels.h"
#include "base/pool.h"
#include "layer/decoder_layer.h"
#include "layer/embedding.h"
#include "linear/linear.h"
#include "linear/pack.h"
#include "sampling/penalties.h"
#include "sampling/sampling.h"
#include "selftest_inputs.h"

namespace edgellama {
namespace {

int failures = 0;

void expect(bool good, const std::string& what) {
  if (!good && ++failures < 20) std::printf("FAILED: %s\n", what.c_str());
}

std::vector<float> run_linear_case(const Matrix& m, Isa isa, Epilogue epilogue, int rows, int tokens, int threads,
                                   float first = 0, bool adapted = false) {
  LinearArgs args;
  LinearShape& shape = args.shape;
  shape.format = m.format;
  shape.epilogue = epilogue;
  shape.rows = rows;
  shape.tokens = tokens;
  shape.in = static_cast<int>(m.k);
  shape.out = static_cast<int>(epilogue == Epilogue::swiglu ? m.n / 2 : m.n);
  shape.eps = 1e-5f;
  const size_t count = static_cast<size_t>(rows) * tokens;
  std::vector<float> x = gaussian(count * shape.in, 2);
  const std::vector<float> gamma = gaussian(shape.in, 3);
  if (first != 0) x[0] = first;
  const std::vector<float> residual = gaussian(count * shape.out, 4), bias = gaussian(shape.panels() * kPanel, 5);
  std::vector<int32_t> length(rows, tokens);
  if (rows > 1) length[1] = tokens / 2;
  std::vector<float> y(count * shape.out, 0.0f);
  args.x = x.data();
  args.weight = m.packed.data;
  args.gamma = gamma.data();
  args.bias = bias.data();
  args.residual = epilogue == Epilogue::residual_add ? residual.data() : nullptr;
  args.length = length.data();
  args.y = y.data();
  constexpr int kRank = 7;
  const std::vector<float> a = gaussian(kRank * static_cast<size_t>(shape.in), 6);
  std::vector<float> b = gaussian(shape.panels() * kPanel * kRank, 7), projected(count * kRank);
  std::fill_n(b.begin(), kPanel * kRank, 0.0f);  // a panel without ranks
  const StoredLowRank stored(kRank, shape.in, static_cast<int>(shape.panels()), a.data(), b.data());
  std::vector<const LowRank*> of_row(rows);
  of_row[rows - 1] = &stored.view();
  if (adapted) {
    args.low_rank = of_row.data();
    args.most_rank = kRank;
    args.projected = projected.data();
  }
  run_linear(args, isa, threads);
  return y;
}

void compare(const std::vector<float>& want, const std::vector<float>& got, float tolerance, const std::string& what) {
  float worst = 0, largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::fabs(want[i] - got[i]));
    largest = std::max(largest, std::fabs(want[i]));
  }
  expect(worst <= tolerance * largest, what + ": " + std::to_string(worst) + " of " + std::to_string(largest));
}

void test_linear(Isa isa) {
  const char* const names[] = {"f32", "bf16", "int8", "int4", "q4_0", "w4g32", "w4g64", "w4g128"};
  for (int f = 0; f < kFormatCount; ++f)
    for (const long k : {33L, 96L, 1600L})
      for (const Epilogue epilogue : {Epilogue::none, Epilogue::residual_add, Epilogue::swiglu})
        for (const int tokens : {1, 5, 9, 34}) {
          const Format format = static_cast<Format>(f);
          const Matrix matrix(epilogue == Epilogue::swiglu ? 96 : 41, k, format, Isa::portable);
          const bool adapted = tokens != 5;
          const std::vector<float> want = run_linear_case(matrix, Isa::portable, epilogue, 2, tokens, 1, 0, adapted);
          const std::vector<float> got = run_linear_case(matrix, isa, epilogue, 2, tokens, 2, 0, adapted);
          // A norm that differs in its last bit moves a value halfway between two steps of 8 bits to the other one.
          const bool coarse = tokens > kFineTokens && format > Format::bf16;
          const bool tiles = isa == Isa::amx && tokens > 5 && format != Format::f32;
          compare(want, got, tiles ? 2e-2f : coarse ? 1e-2f : 1e-4f,
                  std::string("linear ") + isa_name(isa) + " " + names[f] + " k " + std::to_string(k) + " tokens " +
                      std::to_string(tokens) + " epilogue " + std::to_string(static_cast<int>(epilogue)));
        }
}

// A NaN or an infinity in the first row makes that whole row NaN or infinite, and no other.
void test_not_finite(Isa isa) {
  for (int f = 0; f < kFormatCount; ++f)
    for (const int tokens : {2, 34}) {
      const Matrix matrix(41, 96, static_cast<Format>(f), Isa::portable);
      const float bad = tokens == 2 ? std::nanf("") : HUGE_VALF;
      const std::vector<float> y = run_linear_case(matrix, isa, Epilogue::none, 1, tokens, 2, bad);
      for (size_t i = 0; i < y.size(); ++i) expect(std::isfinite(y[i]) == (i >= 41), std::string("nan ") + isa_name(isa));
    }
}

// A call can have fewer valid rows than positions: the scratch for all of them must be enough for any number of them.
void test_linear_scratch() {
  for (int f = 0; f < kFormatCount; ++f)
    for (const int k : {64, 96, 576})
      for (int count = 1; count < 600; ++count) {
        LinearShape shape = {};
        shape.format = static_cast<Format>(f);
        shape.in = k;
        expect(linear_scratch_bytes(shape, count, 4) <= linear_scratch_bytes(shape, count + 1, 4),
               "linear's scratch at " + std::to_string(count) + " rows of " + std::to_string(k));
      }
}

void test_pack(Isa isa) {
  for (const Format format : {Format::f32, Format::bf16, Format::int8, Format::int4, Format::w4g32, Format::w4g128}) {
    const Matrix want(41, 100, format, Isa::portable), got(41, 100, format, isa);
    expect(std::memcmp(want.packed.data, got.packed.data, want.packed.size) == 0, std::string("pack ") + isa_name(isa));
  }
}

void test_embedding(Isa isa) {
  for (int f = 0; f < kFormatCount; ++f) {
    const Matrix matrix(50, 100, static_cast<Format>(f), Isa::portable);
    const std::vector<int32_t> ids = {0, 49, 7, 16}, length = {4};
    std::vector<float> want(400), got(400);
    for (const bool portable : {true, false}) {
      const Isa which = portable ? Isa::portable : isa;
      EmbeddingArgs args;
      args.format = matrix.format;
      args.rows = 1;
      args.tokens = 4;
      args.vocabulary = 50;
      args.width = 100;
      args.weight = matrix.packed.data;
      args.ids = ids.data();
      args.length = length.data();
      args.y = portable ? want.data() : got.data();
      ThreadPool::instance().run(2, [&](Worker& me) { kernels(which)->embedding(args, me); });
    }
    compare(want, got, 0, std::string("embedding ") + isa_name(isa));
  }
}

std::vector<float> run_attention(Isa isa, CacheType cache, int tokens, int head_dim) {
  AttentionArgs a = {};
  a.rows = 2;
  a.tokens = tokens;
  a.heads = 6;
  a.groups = 2;
  a.head_dim = head_dim;
  a.capacity = a.positions = 700;
  a.scale = 0.1f;
  a.cache = cache;
  a.threads = 2;
  const size_t cells = static_cast<size_t>(a.rows) * a.groups * a.capacity;
  const std::vector<float> qkv = gaussian(static_cast<size_t>(a.rows) * tokens * 10 * head_dim, 6);
  const std::vector<float> table = gaussian(static_cast<size_t>(a.positions) * head_dim / 2, 7);
  const std::vector<int32_t> start = {0, 611}, length = {tokens, std::max(tokens / 2, 1)};
  const int width = cache == CacheType::f32 ? 4 : cache == CacheType::f16 ? 2 : 1;
  std::vector<uint8_t> k(cells * head_dim * width), v(cells * head_dim * width);
  std::vector<uint16_t> k_scale(cells, 0x2c00), v_scale(cells, 0x2c00);
  std::vector<float> out(static_cast<size_t>(a.rows) * tokens * a.heads * head_dim);
  a.qkv = qkv.data();
  a.cos = a.sin = table.data();
  a.start = start.data();
  a.length = length.data();
  a.k_cache = k.data();
  a.v_cache = v.data();
  a.k_scale = k_scale.data();
  a.v_scale = v_scale.data();
  a.out = out.data();
  const Bytes scratch(attention_scratch_bytes(a));
  std::memset(scratch.data, 0, scratch.size);
  a.scratch = scratch.data;
  expect(attention_size_error(a).empty() && attention_range_error(a).empty(), "attention arguments");
  ThreadPool::instance().run(a.threads, [&](Worker& me) { kernels(isa)->fused_attention(a, me); });
  return out;
}

void test_attention(Isa isa) {
  for (const CacheType cache : {CacheType::f32, CacheType::f16, CacheType::s8})
    for (const int tokens : {1, 7, 80})
      for (const int head_dim : {18, 64})
        compare(run_attention(Isa::portable, cache, tokens, head_dim), run_attention(isa, cache, tokens, head_dim),
                1e-3f,
                std::string("attention ") + isa_name(isa) + " tokens " + std::to_string(tokens) + " head_dim " +
                    std::to_string(head_dim));
}

// Two rows of different length. Weights and caches have exactly the needed size.
std::vector<float> run_layer(Isa isa, Format format, int tokens) {
  constexpr int kHidden = 80, kInner = 112, kHeads = 4, kGroups = 2, kDim = 16, kCapacity = 130, kRows = 2;
  const Matrix qkv((kHeads + 2 * kGroups) * kDim, kHidden, format, Isa::portable);
  const Matrix o(kHidden, kHeads * kDim, format, Isa::portable);
  const Matrix gate_up(2 * kInner, kHidden, format, Isa::portable), down(kHidden, kInner, format, Isa::portable);
  const std::vector<float> gamma = gaussian(kHidden, 3), table = gaussian(kCapacity * kDim / 2, 7);
  const std::vector<float> h = gaussian(static_cast<size_t>(kRows) * tokens * kHidden, 8);
  const std::vector<int32_t> start = {0, 50}, length = {tokens, tokens / 2};
  std::vector<float> y(h.size(), 0.0f);
  const size_t cells = static_cast<size_t>(kRows) * kGroups * kCapacity * kDim;
  std::vector<uint16_t> k(cells, 0x2c00), v(cells, 0x2c00);
  DecoderLayerArgs args;
  const auto set = [&](LinearArgs& part, const Matrix& m, Epilogue epilogue, bool norm) {
    part.shape.format = format;
    part.shape.epilogue = epilogue;
    part.shape.rows = kRows;
    part.shape.tokens = tokens;
    part.shape.in = static_cast<int>(m.k);
    part.shape.out = static_cast<int>(epilogue == Epilogue::swiglu ? m.n / 2 : m.n);
    part.shape.eps = 1e-5f;
    part.weight = m.packed.data;
    part.gamma = norm ? gamma.data() : nullptr;
    part.length = length.data();
  };
  set(args.qkv, qkv, Epilogue::none, true);
  set(args.o, o, Epilogue::residual_add, false);
  set(args.gate_up, gate_up, Epilogue::swiglu, true);
  set(args.down, down, Epilogue::residual_add, false);
  AttentionArgs& a = args.attention;
  a.rows = kRows;
  a.tokens = tokens;
  a.heads = kHeads;
  a.groups = kGroups;
  a.head_dim = kDim;
  a.capacity = a.positions = kCapacity;
  a.scale = 1e-4f;  // small, because the random projections are large and would give a softmax of a single key
  a.cache = CacheType::f16;
  a.cos = a.sin = table.data();
  a.start = start.data();
  a.length = length.data();
  a.k_cache = k.data();
  a.v_cache = v.data();
  a.threads = 2;
  args.qkv.x = h.data();
  args.down.y = y.data();
  run_decoder_layer(args, isa, 2);
  return y;
}

void test_decoder_layer(Isa isa) {
  for (const Format format : {Format::f32, Format::int8, Format::int4, Format::w4g64})
    for (const int tokens : {1, 2, 40}) {
      // Three matrices after the first one read activations of 8 bits, of which some round to the other side.
      const bool coarse = tokens > kFineTokens && format > Format::bf16;
      compare(run_layer(Isa::portable, format, tokens), run_layer(isa, format, tokens),
              isa == Isa::amx || coarse ? 3e-2f : 1e-3f,
              std::string("decoder layer ") + isa_name(isa) + " tokens " + std::to_string(tokens));
    }
}

// The tokens that each kind of limit keeps, compared with the portable variant, and a draw from them.
void test_sampling(Isa isa) {
  for (const long n : {1L, 31L, 33L, 1000L, 20'011L})
    for (const bool flat : {false, true})
      for (int kind = 0; kind < 6; ++kind) {
        std::vector<float> scores = gaussian(static_cast<size_t>(n), 9);
        for (float& score : scores) score *= flat ? 0.3f : 3.0f;
        if (n > 2) scores[n / 2] = -HUGE_VALF;
        Sampling settings;
        settings.temperature = kind == 0 ? 0.7f : 1.0f;
        settings.top_k = kind == 1 ? 40 : 0;
        settings.top_p = kind == 2 ? 0.9f : 1.0f;
        settings.min_p = kind == 3 ? 0.1f : -1.0f;
        settings.typical_p = kind >= 4 ? 0.8f : 1.0f;
        settings.keep = kind == 5 ? 3 : 1;
        std::vector<float> expected(scores.size()), left(scores.size());
        settings.isa = static_cast<int32_t>(Isa::portable);
        edgellama_warp(&settings, scores.data(), n, expected.data());
        settings.isa = static_cast<int32_t>(isa);
        const int status = edgellama_warp(&settings, scores.data(), n, left.data());
        long other = 0;  // rounding may change the decision at a limit
        for (long i = 0; i < n; ++i) other += std::isinf(left[i]) != std::isinf(expected[i]);
        const int token = edgellama_draw(&settings, scores.data(), 0, n, 0.99);
        const bool good = status == 0 && other <= 1 && token >= 0 && token < n && !std::isinf(left[token]);
        expect(good,
               std::string("sampling ") + isa_name(isa) + " n " + std::to_string(n) + " kind " + std::to_string(kind));
      }
}

// Texts that repeat tokens, of every length around the length of the n-gram.
void test_penalties() {
  for (const long ngram : {0L, 1L, 2L, 3L, 9L})
    for (long length = 1; length < 12; ++length) {
      const std::vector<float> before = gaussian(5, 10);
      std::vector<float> scores = before;
      std::vector<int64_t> text(static_cast<size_t>(length));
      for (long i = 0; i < length; ++i) text[i] = i * i % 5;
      edgellama_penalise(scores.data(), 0, 5, text.data(), length, 1.5f, ngram);
      for (long token = 0; token < 5; ++token) {
        const bool there = std::find(text.begin(), text.end(), token) != text.end();
        bool banned = false;
        for (long i = 0; ngram > 0 && i + ngram <= length; ++i)
          banned |= text[i + ngram - 1] == token && std::equal(text.end() - (ngram - 1), text.end(), text.begin() + i);
        const float kept = there ? before[token] < 0 ? before[token] * 1.5f : before[token] / 1.5f : before[token];
        expect(scores[token] == (banned ? -HUGE_VALF : kept), "penalties of " + std::to_string(ngram));
      }
    }
}

void test_kernels() {
  test_linear_scratch();
  test_penalties();
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa isa = static_cast<Isa>(i);
    const char* const absent = isa_available(isa) ? "not in this build" : "not run: this CPU lacks it";
    std::printf("%s: %s\n", isa_name(isa), kernels(isa) ? "running" : absent);
    if (!kernels(isa)) continue;
    test_pack(isa);
    test_embedding(isa);
    test_linear(isa);
    test_not_finite(isa);
    test_attention(isa);
    test_decoder_layer(isa);
    test_sampling(isa);
  }
}

// Regions of several callers and of changing sizes, with barriers, and with pauses long enough for the workers to
// sleep.
void test_pool() {
  std::atomic<int> wrong{0};
  const auto call = [&](int seed) {
    for (int i = 0; i < 300; ++i) {
      const int threads = 1 + (seed + i) % 5;
      std::vector<int> parts(threads, 0);
      std::atomic<int> entered{0};
      ThreadPool::instance().run(threads, [&](Worker& me) {
        ++entered;
        for (int phase = 1; phase <= 3; ++phase) {
          parts[me.index()] = phase;
          me.barrier();
          for (const int part : parts)
            if (part != phase) ++wrong;
          me.barrier();
        }
        if (threads == 1) return;
        ThreadPool::instance().run(4, [&](Worker& inner) {  // a region inside a region has one thread
          if (inner.count() != 1) ++wrong;
        });
      });
      if (entered != threads) ++wrong;
      if (i % 100 == 99) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  };
  std::vector<std::thread> callers;
  for (int seed = 0; seed < 4; ++seed) callers.emplace_back(call, seed);
  for (std::thread& caller : callers) caller.join();
  expect(wrong == 0, "pool: " + std::to_string(wrong));
}

}  // namespace
}  // namespace edgellama

int main(int count, char** arguments) {
  const std::string which = count > 1 ? arguments[1] : "";
  if (which != "pool") edgellama::test_kernels();
  if (which != "kernels") edgellama::test_pool();
  std::printf(edgellama::failures ? "%d failures\n" : "all good\n", edgellama::failures);
  return edgellama::failures ? 1 : 0;
}
