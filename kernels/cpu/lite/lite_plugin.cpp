// The operators EdgeEmbedding and EdgeHead, and the registration of all custom operators with MindSpore Lite. An
// operator checks its inputs when a graph is built, and runs on the process's thread pool.
#include <algorithm>
#include <mutex>
#include <numeric>

#include "base/kernels.h"
#include "base/pool.h"
#include "layer/embedding.h"
#include "layer/head.h"
#include "linear/linear.h"
#include "lite/lite_decoder_layer.h"
#include "lite/lite_operator.h"

namespace edgellama {
namespace {

// EdgeEmbedding(tokens [B, S], weight, length [B]) -> [B, S, K]
class EmbeddingOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  void prepare() final {
    args_.format = static_cast<Format>(choice("format", kFormats));
    args_.vocabulary = size_attribute("vocabulary");
    args_.width = size_attribute("width");
    args_.rows = size(0, 0);
    args_.tokens = size(0, 1);
    expect(0, DataType::kInt32, {-1, -1});
    expect(1, DataType::kUInt8, {panel_count(args_.vocabulary), int64_t(panel_bytes(args_.format, args_.width))});
    expect(2, DataType::kInt32, {args_.rows});
    expect_output(DataType::kFloat32, {args_.rows, args_.tokens, args_.width});
    if (!embedding_sizes_fit(args_)) fail("rows * tokens are more than " + std::to_string(kMostSize));
  }

  void run() final {
    args_.ids = data<const int32_t>(0);
    args_.weight = data<const uint8_t>(1);
    args_.length = data<const int32_t>(2);
    args_.y = output<float>();
    const int bad = wrong_length(args_.length, args_.rows, args_.tokens);
    if (bad >= 0) return fail("length[" + std::to_string(bad) + "] is " + std::to_string(args_.length[bad]));
    const int64_t wrong = wrong_token(args_);
    if (wrong >= 0)
      return fail("token id " + std::to_string(args_.ids[wrong]) + " is outside 0.." +
                  std::to_string(args_.vocabulary - 1));
    const int count = std::accumulate(args_.length, args_.length + args_.rows, 0);
    const auto kernel = kernels(isa_)->embedding;
    ThreadPool::instance().run(count < 4 ? 1 : threads_, [&](Worker& me) { kernel(args_, me); });
  }

  EmbeddingArgs args_;
};

// EdgeHead(h [B, S, K], weight, length [B], gamma [K]) -> logits [B, V] of the last valid token of each row; zeros if the
// hidden states are requested instead (layer/head.h)
class HeadOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  void prepare() final {
    LinearShape& shape = args_.shape;
    shape.format = static_cast<Format>(choice("format", kFormats));
    shape.last_only = true;
    shape.eps = real("eps");
    shape.softcap = optional_real("softcap");
    shape.in = size(0, 2);
    shape.out = size_attribute("vocabulary");
    shape.rows = size(0, 0);
    shape.tokens = size(0, 1);
    expect(0, DataType::kFloat32, {-1, -1, -1});
    expect(1, DataType::kUInt8, {shape.panels(), int64_t(panel_bytes(shape.format, shape.in))});
    expect(2, DataType::kInt32, {shape.rows});
    expect(3, DataType::kFloat32, {shape.in});
    expect_output(DataType::kFloat32, {shape.rows, shape.out});
    if (!linear_sizes_fit(shape)) fail("rows * tokens are more than " + std::to_string(kMostSize));
  }

  void run() final {
    args_.x = data<const float>(0);
    args_.weight = data<const uint8_t>(1);
    args_.length = data<const int32_t>(2);
    args_.gamma = data<const float>(3);
    args_.y = output<float>();
    const int bad = wrong_length(args_.length, args_.shape.rows, args_.shape.tokens);
    if (bad >= 0) return fail("length[" + std::to_string(bad) + "] is " + std::to_string(args_.length[bad]));
    const HiddenRequest request = hidden_request(args_.weight);
    if (!request.hidden) return run_linear(args_, isa_, threads_);
    const LinearShape& shape = args_.shape;
    const long floats = static_cast<long>(shape.rows) * shape.tokens * shape.in;
    if (floats > request.floats)
      return fail("the hidden states are " + std::to_string(floats) + " floats, the request has room for " +
                  std::to_string(request.floats));
    std::copy_n(args_.x, floats, request.hidden);
    std::fill_n(args_.y, static_cast<long>(shape.rows) * shape.out, 0.0f);
  }

  LinearArgs args_;
};

// Infers an operator's output shape. The exporter has written it into the graph, but MindSpore Lite asks for it again.
class Shapes : public mindspore::kernel::KernelInterface {
 public:
  using Infer3 = std::vector<int64_t> (*)(const std::vector<MSTensor>& inputs,
                                          const std::map<std::string, std::string>& attributes);
  explicit Shapes(Infer3 shape) : shape_(shape) {}

  mindspore::Status Infer(std::vector<MSTensor>* inputs, std::vector<MSTensor>* outputs,
                          const mindspore::schema::Primitive* primitive) final {
    return Infer(inputs, outputs, primitive, nullptr);
  }
  mindspore::Status Infer(std::vector<MSTensor>* inputs, std::vector<MSTensor>* outputs,
                          const mindspore::schema::Primitive* primitive, const mindspore::kernel::Kernel*) final {
    const std::vector<int64_t> shape = shape_(*inputs, custom_attributes(primitive));
    if (shape.empty() || outputs->size() != 1) return {mindspore::kLiteInferError, {}};
    (*outputs)[0].SetShape(shape);
    (*outputs)[0].SetDataType(DataType::kFloat32);
    return {mindspore::kSuccess, {}};
  }

 private:
  const Infer3 shape_;
};

// The number in an attribute; 0, which the operator refuses, if there is none.
int64_t number(const std::map<std::string, std::string>& attributes, const char* name) {
  const auto found = attributes.find(name);
  int number = 0;
  return found != attributes.end() && read_integer(found->second, number) ? number : 0;
}

template <typename T>
void add(const char* op, Shapes::Infer3 shape) {
  const auto chars = [](const std::string& s) { return std::vector<char>(s.begin(), s.end()); };
  mindspore::registry::RegisterKernelInterface::CustomReg(
      {}, chars(op), [shape] { return std::make_shared<Shapes>(shape); });
  const auto create = [op](const std::vector<MSTensor>& inputs, const std::vector<MSTensor>& outputs,
                           const mindspore::schema::Primitive* primitive, const mindspore::Context* context) {
    return std::make_shared<T>(op, inputs, outputs, primitive, context);
  };
  // MindSpore Lite finds a kernel by the type of its first input.
  for (const DataType type : {DataType::kFloat32, DataType::kInt32})
    mindspore::registry::RegisterKernel::RegCustomKernel(chars("CPU"), {}, type, chars(op), create);
}

}  // namespace
}  // namespace edgellama

// Registers the operators with the MindSpore Lite that this process has loaded. Its libraries must be RTLD_GLOBAL. A
// second call does nothing.
EDGELLAMA_API void edgellama_register() {
  using namespace edgellama;
  static std::once_flag once;
  std::call_once(once, [] {
    add<EmbeddingOperator>("EdgeEmbedding", [](const auto& inputs, const auto& attributes) -> std::vector<int64_t> {
      if (inputs.empty() || inputs[0].Shape().size() != 2) return {};
      return {inputs[0].Shape()[0], inputs[0].Shape()[1], number(attributes, "width")};
    });
    add<DecoderLayerOperator>("EdgeDecoderLayer", [](const auto& inputs, const auto&) -> std::vector<int64_t> {
      if (inputs.empty()) return {};
      return inputs[0].Shape();
    });
    add<HeadOperator>("EdgeHead", [](const auto& inputs, const auto& attributes) -> std::vector<int64_t> {
      if (inputs.empty() || inputs[0].Shape().size() != 3) return {};
      return {inputs[0].Shape()[0], number(attributes, "vocabulary")};
    });
  });
}
