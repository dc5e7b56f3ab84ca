#include "linear/pack.h"

#include "base/kernels.h"
#include "base/pool.h"

// Packs floats w [n, k] or, if w is null, scales [n, scale_count()], q [n, k] and, for w4gN, zeros [n, scale_count()] into
// `out`, which has packed_bytes() bytes. Returns 0, -1 if this CPU or this build lacks the variant, or -2 for a wrong
// argument: a size below 1 or too large, or arrays that do not fit the format. Float formats and float weights have no
// scales; q4_0 and w4gN have no float weights.
EDGELLAMA_API int edgellama_pack(int isa, int threads, int format, long n, long k, const float* w,
                                 const uint16_t* scales, const int8_t* zeros, const uint8_t* q, void* out) {
  using namespace edgellama;
  const Kernels* table = kernels(static_cast<Isa>(isa));
  if (!table) return -1;
  PackArgs args;
  args.format = static_cast<Format>(format);
  args.n = n;
  args.k = k;
  args.w = w;
  args.scales = scales;
  args.zeros = zeros;
  args.q = q;
  args.out = static_cast<uint8_t*>(out);
  if (format < 0 || format >= kFormatCount || !is_size(n) || !is_size(k) || !out) return -2;
  const bool quantized = q && scales && k % kGroup == 0 && args.format > Format::bf16 && is_w4(args.format) == !!zeros;
  const bool floats = w && !q && args.format < Format::q4_0;
  if (!quantized && !floats) return -2;
  ThreadPool::instance().run(threads, [&](Worker& me) { table->pack(args, me); });
  return 0;
}
