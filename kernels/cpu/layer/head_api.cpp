#include "layer/head.h"

#include <atomic>
#include <map>
#include <mutex>

#include "base/kernels.h"
#include "linear/linear.h"

namespace edgellama {
namespace {

// Each loaded model has its own weights, so the address of the head's weight names the model.
std::mutex requests_mutex;
std::map<const void*, HiddenRequest> requests;
std::atomic<int> request_count{0};  // so that a pass without requests takes no lock

}  // namespace

HiddenRequest hidden_request(const void* head_weight) {
  if (request_count.load(std::memory_order_acquire) == 0) return {};
  const std::lock_guard<std::mutex> lock(requests_mutex);
  const auto found = requests.find(head_weight);
  return found == requests.end() ? HiddenRequest{} : found->second;
}

}  // namespace edgellama

// Asks the next passes of the model whose head has the weight `head_weight` for their hidden states: EdgeHead then writes
// its input [B, S, K] to `hidden`, which has room for `floats` floats, and zeros instead of logits. A null `hidden` ends
// the request. Returns 0, or -2 for a wrong argument.
EDGELLAMA_API int edgellama_request_hidden(const void* head_weight, float* hidden, long floats) {
  using namespace edgellama;
  if (!head_weight || (hidden && floats <= 0)) return -2;
  const std::lock_guard<std::mutex> lock(requests_mutex);
  if (hidden)
    requests[head_weight] = {hidden, floats};
  else
    requests.erase(head_weight);
  request_count.store(static_cast<int>(requests.size()), std::memory_order_release);
  return 0;
}

// Computes the logits [count, out] of hidden states [count, in]: softcap(norm(h) W^T), as EdgeHead does for the last
// tokens. `softcap` 0 means none. Runs on `threads` threads of the process's pool, with the best instruction set.
// Returns 0, or -2 for a wrong argument.
EDGELLAMA_API int edgellama_head(int threads, int format, int count, int in, int out, float eps, float softcap,
                                 const float* hidden, const void* weight, const float* gamma, float* logits) {
  using namespace edgellama;
  const int32_t length = count;
  LinearArgs args =
      plain_linear(format, 0, 1, count, in, out, eps, hidden, weight, gamma, nullptr, nullptr, &length, logits);
  args.shape.softcap = softcap;
  args.shape.logits = true;
  if (threads < 1 || !gamma || !linear_args_fit(args)) return -2;
  run_linear(args, best_isa(), threads);
  return 0;
}
