#include "layer/decoder_layer.h"

#include <algorithm>

#include "base/kernels.h"
#include "base/pool.h"
#include "base/rounding.h"
#include "base/scratch.h"

namespace edgellama {
namespace {

// Divides one allocation into parts, each aligned to a cache line. Without memory it only counts the bytes.
class Carver {
 public:
  explicit Carver(uint8_t* memory) : memory_(memory) {}
  template <typename T>
  T* take(size_t count) {
    T* const part = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += round_up(static_cast<long>(count * sizeof(T)), 64);
    return part;
  }
  size_t used() const { return used_; }

 private:
  uint8_t* const memory_;
  size_t used_ = 0;
};

// Sets the arrays between the parts and the scratch, and the bytes that they take.
void lay_out(DecoderLayerArgs& a, Carver carver, int threads, size_t* bytes) {
  const size_t positions = static_cast<size_t>(a.qkv.shape.rows) * a.qkv.shape.tokens;
  int32_t* const index = carver.take<int32_t>(2 * positions);
  float* const qkv = carver.take<float>(positions * a.qkv.shape.out);
  float* const attended = carver.take<float>(positions * a.o.shape.in);
  float* const inner = carver.take<float>(positions * a.down.shape.in);
  float* const added = a.attention_norm ? carver.take<float>(positions * a.down.shape.out) : nullptr;
  size_t most = 0;
  for (const LinearArgs* part : {&a.qkv, &a.o, &a.gate_up, &a.down})
    most = std::max(most, linear_scratch_bytes(part->shape, static_cast<int>(positions), threads));
  int most_rank = 0;
  for (const LinearArgs* part : {&a.qkv, &a.o, &a.gate_up, &a.down})
    if (part->low_rank) most_rank = std::max(most_rank, part->most_rank);
  float* const projected = most_rank ? carver.take<float>(positions * most_rank) : nullptr;
  uint8_t* const work = carver.take<uint8_t>(most);
  *bytes = carver.used();
  if (!work) return;
  a.qkv.y = qkv;
  a.attention.qkv = qkv;
  a.attention.out = attended;
  a.o.x = attended;
  a.o.residual = a.qkv.x;
  // The sum after attention uses the memory of the result: each element is read before it is written.
  a.stream = a.down.y;
  a.added = added;
  a.o.y = added ? added : a.stream;
  a.gate_up.x = a.stream;
  a.down.residual = a.stream;
  if (added) {
    a.down.y = added;
    a.o.residual = a.down.residual = nullptr;
  }
  a.gate_up.y = inner;
  a.down.x = inner;
  choose_rows(a.qkv, index);
  for (LinearArgs* part : {&a.qkv, &a.o, &a.gate_up, &a.down}) {
    part->source = a.qkv.source;
    part->target = a.qkv.target;
    part->count = a.qkv.count;
    part->rounded = a.qkv.rounded;
    part->projected = projected;
    part->scratch = work;
  }
}

}  // namespace

void run_decoder_layer(DecoderLayerArgs args, Isa isa, int threads) {
  size_t bytes = 0;
  lay_out(args, Carver(nullptr), threads, &bytes);
  lay_out(args, Carver(scratch(bytes)), threads, &bytes);
  if (args.qkv.count == 0) return;
  args.attention.scratch = attention_scratch(args.attention);
  const auto kernel = kernels(isa)->decoder_layer;
  ThreadPool::instance().run(threads, [&](Worker& me) { kernel(args, me); });
}

}  // namespace edgellama
