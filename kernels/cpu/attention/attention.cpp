// FusedAttention for the instruction set that is compiled: writes the cache, and gives each thread its next job.
#include "attention/attention.h"

#include <atomic>

#include "attention/attention_decode.h"
#include "attention/attention_plan.h"
#include "attention/attention_prefill.h"
#include "base/pool.h"
#if defined(__AMX_BF16__)
#include "attention/attention_amx.h"
#endif

namespace edgellama::EDGELLAMA_ISA {

namespace {

template <class T>
struct Prefill {
  using Products = FloatProducts;
  struct State {};
};
#if defined(__AMX_BF16__)
// A float32 cache needs float32 precision. The bf16 tiles are exact enough for the other types.
template <>
struct Prefill<uint16_t> {
  using Products = TileProducts;
  using State = TileSession;
};
template <>
struct Prefill<int8_t> : Prefill<uint16_t> {};
#endif

using Counter = std::atomic<int32_t>;
static_assert(sizeof(Counter) == sizeof(int32_t) && Counter::is_always_lock_free, "counters are in plain memory");

// One call by one thread. Both kinds of counters in the scratch are zero before the call and zero again after it.
template <class T>
class Call {
 public:
  Call(const AttentionArgs& args, Worker& me)
      : a_(args), me_(me), layout_(args), share_(args.heads / args.groups) {
    char* memory = static_cast<char*>(args.scratch);
    ticket_ = reinterpret_cast<Counter*>(memory);
    arrived_ = reinterpret_cast<Counter*>(memory + kCacheLine);
    partials_ = reinterpret_cast<float*>(memory + layout_.counter_bytes);
    work_ = partials_ + layout_.partial_floats + me.index() * layout_.thread_floats;
  }

  void run() {
    write_rows();
    long jobs = 0, queries = 0;
    for (long b = 0; b < a_.rows; ++b)
      if (a_.length[b] > kFewTokens) queries += long(a_.length[b]) * a_.heads;
    // Four jobs per thread balance the causal triangle. Smaller blocks would cost more, because each job converts the
    // keys that it reads.
    block_ = round_up(divide_up(queries, 4L * me_.count()), kStrip);
    if (block_ > kMaxStrips * kStrip) block_ = kMaxStrips * kStrip;
    if (block_ < kStrip) block_ = kStrip;
    for (long b = 0; b < a_.rows; ++b) jobs += a_.groups * pieces(b);

    long row = 0, before = 0;  // the number of jobs of the rows before `row`
    for (;;) {
      const long job = ticket_->fetch_add(1, std::memory_order_relaxed);
      if (job >= jobs) {
        // Each thread draws one ticket too many. The last thread resets the counter.
        if (job == jobs + me_.count() - 1) ticket_->store(0, std::memory_order_relaxed);
        return;
      }
      while (job - before >= a_.groups * pieces(row)) before += a_.groups * pieces(row++);
      const long count = pieces(row), group = (job - before) / count, piece = (job - before) % count;
      if (a_.length[row] == 1)
        decode(row, group, piece, count);
      else if (a_.length[row] <= kFewTokens)
        decode_token(row, group, piece);
      else
        prefill(row, group, count - 1 - piece);  // the latest tokens first, because they see the most keys
    }
  }

 private:
  // Jobs of one (row, group).
  long pieces(long row) const {
    if (a_.length[row] == 0) return 0;
    if (a_.length[row] == 1) return parts(row, 0);
    if (a_.length[row] <= kFewTokens) return a_.length[row];
    return divide_up(a_.length[row] * share_, block_);
  }
  // The number of positions that a token of a row sees, and of the parts into which a decode divides them.
  long visible(long row, long token) const {
    const long end = a_.start[row] + token + 1L;
    return a_.window && a_.window < end ? a_.window : end;
  }
  long parts(long row, long token) const {
    const long seen = visible(row, token);
    return divide_up(seen, part_length(seen));
  }

  // Writes keys and values of the rows with several tokens to the cache before any thread reads it, and sets the output
  // of padding to zero. For a row with one token, the decode job that reads the new position writes it.
  void write_rows() {
    bool wait = false;
    for (long b = 0; b < a_.rows; ++b) wait |= a_.length[b] > 1;
    const Range mine = edgellama::share(me_, long(a_.rows) * a_.tokens);
    for (long i = mine.begin; i < mine.end; ++i) {
      const long b = i / a_.tokens, token = i % a_.tokens, width = long(a_.heads) * a_.head_dim;
      if (token >= a_.length[b])
        std::memset(a_.out + i * width, 0, sizeof(float) * size_t(width));
      else if (a_.length[b] > 1)
        for (long g = 0; g < a_.groups; ++g) write_position<T>(a_, b, token, g, a_.start[b] + token, work_);
    }
    if (wait) me_.barrier();
  }

  // Attention of one token to part `part` of what it sees. all: the partial results [parts, H/G, partial_stride].
  void decode_one(long row, long token, long group, long part, float* all) {
    const long seen = visible(row, token), length = part_length(seen), oldest = a_.start[row] + token + 1 - seen;
    const long first = oldest + part * length;
    const long last = part + 1 == parts(row, token) ? oldest + seen : first + length;
    decode_part<T>(a_, layout_, row, token, group, first, last, work_, all + part * share_ * layout_.partial_stride);
  }

  void join(long row, long token, long group, const float* all) {
    const long stride = layout_.partial_stride;
    for (long h = 0; h < share_; ++h) {
      float* out = a_.out + ((row * a_.tokens + token) * a_.heads + group * share_ + h) * a_.head_dim;
      join_parts(all + h * stride, share_ * stride, parts(row, token), a_.head_dim, out);
    }
  }

  void decode(long row, long group, long part, long parts) {
    float* all = partials_ + (row * a_.groups + group) * share_ * layout_.part_count * layout_.partial_stride;
    decode_one(row, 0, group, part, all);

    Counter& arrived = arrived_[row * a_.groups + group];
    if (parts > 1) {
      if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < parts) return;
      arrived.store(0, std::memory_order_relaxed);
    }
    join(row, 0, group, all);
  }

  void decode_token(long row, long group, long token) {
    float* all = work_ + part_work(layout_, share_);
    for (long part = 0; part < parts(row, token); ++part) decode_one(row, token, group, part, all);
    join(row, token, group, all);
  }

  void prefill(long row, long group, long piece) {
    const long queries = a_.length[row] * share_, first = piece * block_;
    const long last = first + block_ < queries ? first + block_ : queries;
    const typename Prefill<T>::State state;
    (void)state;
    prefill_block<T, typename Prefill<T>::Products>(a_, layout_, {row, group, first, last}, work_);
  }

  const AttentionArgs& a_;
  Worker& me_;
  const ScratchLayout layout_;
  const long share_;
  long block_ = 0;
  Counter *ticket_, *arrived_;
  float *partials_, *work_;
};

}  // namespace

void fused_attention(const AttentionArgs& args, Worker& me) {
  switch (args.cache) {
    case CacheType::f32: return Call<float>(args, me).run();
    case CacheType::f16: return Call<uint16_t>(args, me).run();
    case CacheType::s8: return Call<int8_t>(args, me).run();
  }
}

}  // namespace edgellama::EDGELLAMA_ISA
