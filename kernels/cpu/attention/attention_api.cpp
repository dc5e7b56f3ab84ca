// FusedAttention's scratch and checks, and its C interface for the tests.
#include <array>
#include <cstring>
#include <sstream>

#include "attention/attention.h"
#include "attention/attention_plan.h"
#include "base/kernels.h"
#include "base/pool.h"
#include "base/scratch.h"

namespace edgellama {

size_t attention_scratch_bytes(const AttentionArgs& args) { return ScratchLayout(args).bytes(args.threads); }

uint8_t* attention_scratch(const AttentionArgs& a) {
  thread_local Arena arena;
  thread_local std::array<int32_t, 6> laid_out = {};
  const std::array<int32_t, 6> sizes = {a.rows, a.heads, a.groups, a.head_dim, a.capacity, a.threads};
  const size_t bytes = attention_scratch_bytes(a);
  uint8_t* memory = arena.get(bytes);
  if (sizes != laid_out) {
    std::memset(memory, 0, bytes);
    laid_out = sizes;
  }
  return memory;
}

std::string attention_size_error(const AttentionArgs& a) {
  std::ostringstream text;
  text << "FusedAttention: ";
  const bool positive = a.rows > 0 && a.tokens > 0 && a.heads > 0 && a.groups > 0 && a.head_dim > 0 && a.capacity > 0;
  if (!positive)
    text << "rows " << a.rows << ", tokens " << a.tokens << ", heads " << a.heads << ", groups " << a.groups
         << ", head_dim " << a.head_dim << ", capacity " << a.capacity << "; each must be at least 1";
  else if (a.heads % a.groups)
    text << a.heads << " query heads are not a multiple of " << a.groups << " key/value heads";
  else if (!is_size(long(a.rows) * a.tokens) || !is_size(long(a.rows) * a.heads * a.head_dim) ||
           !is_size((long(a.heads) + 2L * a.groups) * a.head_dim))
    text << "rows " << a.rows << ", tokens " << a.tokens << ", heads " << a.heads << ", groups " << a.groups
         << ", head_dim " << a.head_dim << "; rows * tokens, and all values of a token, are at most " << kMostSize;
  else if (a.head_dim % 2)
    text << "head_dim " << a.head_dim << " is odd; the rotary embedding needs an even one";
  else if (a.positions < a.capacity)
    text << "the rotary tables hold " << a.positions << " positions, the cache " << a.capacity;
  else if (a.capacity >= kMostSize)
    text << "capacity " << a.capacity << " is past the limit of " << kMostSize - 1;
  else if (a.window < 0)
    text << "window " << a.window << " is negative; 0 means none";
  else if (a.cache != CacheType::f32 && a.cache != CacheType::f16 && a.cache != CacheType::s8)
    text << "cache type " << static_cast<int>(a.cache) << " is unknown; choose 0 (float32), 1 (float16) or 2 (int8)";
  else if (a.norm < HeadNorm::none || a.norm > HeadNorm::after_rope)
    text << "norm " << static_cast<int>(a.norm) << " is unknown; choose 0 (none), 1 (each head), 2 (all heads) or 3 "
         << "(each head, after the rotary embedding)";
  else if (!(a.softcap >= 0))
    text << "softcap " << a.softcap << " is not a number of at least 0; 0 means none";
  else if (!(a.query_beta >= 0) || (a.query_beta > 0 && a.query_period < 1))
    text << "query_beta " << a.query_beta << " and query_period " << a.query_period
         << " are not a number of at least 0 and, with it, a period of at least 1";
  else if (a.threads < 1 || a.threads > ThreadPool::kMaxThreads)
    text << "threads " << a.threads << " is outside 1.." << ThreadPool::kMaxThreads;
  else
    return {};
  return text.str();
}

std::string attention_range_error(const AttentionArgs& a) {
  for (int32_t b = 0; b < a.rows; ++b) {
    const int64_t start = a.start[b], length = a.length[b];
    if (start >= 0 && length >= 0 && length <= a.tokens && start + length <= a.capacity) continue;
    std::ostringstream text;
    text << "FusedAttention: row " << b << " has start " << start << " and length " << length << "; length must be 0.."
         << a.tokens << " (tokens), start 0 or more, and start + length at most " << a.capacity << " (capacity)";
    return text.str();
  }
  return {};
}

}  // namespace edgellama

using edgellama::AttentionArgs;

// The scratch that edgellama_attention needs; 0 if it would refuse the sizes.
EDGELLAMA_API size_t edgellama_attention_scratch_bytes(const AttentionArgs* args) {
  return edgellama::attention_size_error(*args).empty() ? edgellama::attention_scratch_bytes(*args) : 0;
}

// Runs one call `repeats` times with the variant `isa` on args->threads threads. Returns 0. On an error returns 1 and
// writes the reason to `message`, which has `size` bytes.
EDGELLAMA_API int edgellama_attention(const AttentionArgs* args, int isa, int repeats, char* message, size_t size) {
  const edgellama::Kernels* table = edgellama::kernels(static_cast<edgellama::Isa>(isa));
  std::string error = edgellama::attention_size_error(*args);
  const bool arrays = args->qkv && args->cos && args->sin && args->start && args->length && args->k_cache &&
                      args->v_cache && args->out && args->scratch;
  const bool scales = args->cache != edgellama::CacheType::s8 || (args->k_scale && args->v_scale);
  const bool gammas = args->norm == edgellama::HeadNorm::none || (args->q_gamma && args->k_gamma);
  if (error.empty() && !(arrays && scales && gammas)) error = "FusedAttention: an array is missing";
  if (error.empty()) error = edgellama::attention_range_error(*args);
  if (error.empty() && !table) error = "FusedAttention: this CPU or this build lacks the instruction set";
  if (!error.empty()) {
    if (size) message[error.copy(message, size - 1)] = '\0';
    return 1;
  }
  for (int i = 0; i < repeats; ++i)
    edgellama::ThreadPool::instance().run(args->threads,
                                          [&](edgellama::Worker& me) { table->fused_attention(*args, me); });
  return 0;
}
