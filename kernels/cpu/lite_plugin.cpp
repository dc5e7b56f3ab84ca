// The custom operators as MindSpore Lite sees them: registered when the library is loaded, checked when a graph is
// built, run on the process's pool.
#include <algorithm>
#include <mutex>

#include "abi.h"
#include "attention.h"
#include "embedding.h"
#include "linear.h"
#include "lite_operator.h"
#include "scratch.h"

namespace edgellama {
namespace {

const std::vector<const char*> kFormats = {"f32", "bf16", "int8", "int4", "q4_0"};

// Lengths of a call, each 0..tokens; the first that is not, or -1.
int bad_length(const int32_t* length, int rows, int tokens) {
  for (int b = 0; b < rows; ++b)
    if (length[b] < 0 || length[b] > tokens) return b;
  return -1;
}

// EdgeEmbedding(tokens [B, S], weight, length [B]) -> [B, S, K]
class EmbeddingOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  void prepare() final {
    args_.format = static_cast<Format>(choice("format", kFormats));
    args_.vocabulary = integer("vocabulary");
    args_.width = integer("width");
    args_.rows = static_cast<int>(size(0, 0));
    args_.tokens = static_cast<int>(size(0, 1));
    expect(0, DataType::kInt32, {-1, -1});
    expect(1, DataType::kUInt8, {panel_count(args_.vocabulary), int64_t(panel_bytes(args_.format, args_.width))});
    expect(2, DataType::kInt32, {args_.rows});
    expect_output(DataType::kFloat32, {args_.rows, args_.tokens, args_.width});
  }

  void run() final {
    args_.ids = data<const int32_t>(0);
    args_.weight = data<const uint8_t>(1);
    args_.length = data<const int32_t>(2);
    args_.y = output<float>();
    const int bad = bad_length(args_.length, args_.rows, args_.tokens);
    if (bad >= 0) return fail("length[" + std::to_string(bad) + "] is " + std::to_string(args_.length[bad]));
    int count = 0;
    for (int b = 0; b < args_.rows; ++b)
      for (int s = 0; s < args_.length[b]; ++s, ++count) {
        const int32_t id = args_.ids[b * args_.tokens + s];
        if (id < 0 || id >= args_.vocabulary)
          return fail("token id " + std::to_string(id) + " is outside 0.." + std::to_string(args_.vocabulary - 1));
      }
    const auto kernel = kernels(isa_)->embedding;
    ThreadPool::instance().run(count < 4 ? 1 : threads_, [&](Worker& me) { kernel(args_, me); });
  }

  EmbeddingArgs args_;
};

// EdgeLinear(x [B, S, K], weight, length [B], gamma [K] if norm, bias if bias, residual [B, S, N] if residual_add)
//   -> [B, S, N], or [B, N] if last_only
class LinearOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  void prepare() final {
    LinearShape& shape = args_.shape;
    shape.format = static_cast<Format>(choice("format", kFormats));
    shape.epilogue = static_cast<Epilogue>(choice("epilogue", {"none", "residual_add", "swiglu"}));
    shape.last_only = integer("last_only") != 0;
    shape.eps = real("eps");
    shape.in = integer("in");
    shape.out = integer("out");
    shape.rows = static_cast<int>(size(0, 0));
    shape.tokens = static_cast<int>(size(0, 1));
    const int64_t panels = shape.panels();
    expect(0, DataType::kFloat32, {-1, -1, shape.in});
    expect(1, DataType::kUInt8, {panels, int64_t(panel_bytes(shape.format, shape.in))});
    expect(2, DataType::kInt32, {shape.rows});
    size_t next = 3;
    if (integer("norm")) expect(gamma_ = next++, DataType::kFloat32, {shape.in});
    if (integer("bias")) expect(bias_ = next++, DataType::kFloat32, {panels * kPanel});
    if (shape.epilogue == Epilogue::residual_add)
      expect(residual_ = next++, DataType::kFloat32, {shape.rows, shape.tokens, shape.out});
    if (shape.last_only)
      expect_output(DataType::kFloat32, {shape.rows, shape.out});
    else
      expect_output(DataType::kFloat32, {shape.rows, shape.tokens, shape.out});
    if (shape.last_only && shape.epilogue == Epilogue::residual_add) fail("last_only with residual_add");
  }

  void run() final {
    LinearArgs args = args_;
    args.x = data<const float>(0);
    args.weight = data<const uint8_t>(1);
    args.length = data<const int32_t>(2);
    if (gamma_) args.gamma = data<const float>(gamma_);
    if (bias_) args.bias = data<const float>(bias_);
    if (residual_) args.residual = data<const float>(residual_);
    args.y = output<float>();
    const int bad = bad_length(args.length, args.shape.rows, args.shape.tokens);
    if (bad >= 0) return fail("length[" + std::to_string(bad) + "] is " + std::to_string(args.length[bad]));
    run_linear(args, isa_, threads_);
  }

  LinearArgs args_;
  size_t gamma_ = 0, bias_ = 0, residual_ = 0;  // which input; 0: none
};

// FusedAttention(qkv [B, S, (H + 2G) * D], cos, sin [P, D/2], start, length [B], k_cache, v_cache [B, G, C, D],
//   k_scale, v_scale [B, G, C] with int8 caches) -> [B, S, H * D]; the caches are written in place.
// A float16 array is an input of type int16: MindSpore Lite makes float32 of a float16 input where the CPU's own kernels
// have no half precision.
class AttentionOperator : public Operator {
 public:
  using Operator::Operator;

 private:
  void prepare() final {
    args_.heads = integer("heads");
    args_.window = integer("window");
    args_.scale = real("scale");
    args_.cache = static_cast<CacheType>(choice("cache", {"f32", "f16", "s8"}));
    args_.rows = static_cast<int32_t>(size(0, 0));
    args_.tokens = static_cast<int32_t>(size(0, 1));
    args_.positions = static_cast<int32_t>(size(1, 0));
    args_.groups = static_cast<int32_t>(size(5, 1));
    args_.capacity = static_cast<int32_t>(size(5, 2));
    args_.head_dim = static_cast<int32_t>(size(5, 3));
    args_.threads = threads_;
    const int64_t dim = args_.head_dim, half = dim / 2;
    const std::vector<int64_t> cache = {args_.rows, args_.groups, args_.capacity, dim};
    const DataType types[] = {DataType::kFloat32, DataType::kInt16, DataType::kInt8};
    const DataType type = types[static_cast<int>(args_.cache)];
    expect(0, DataType::kFloat32, {-1, -1, (args_.heads + 2 * args_.groups) * dim});
    expect(1, DataType::kFloat32, {-1, half});
    expect(2, DataType::kFloat32, {args_.positions, half});
    expect(3, DataType::kInt32, {args_.rows});
    expect(4, DataType::kInt32, {args_.rows});
    expect(5, type, cache);
    expect(6, type, cache);
    if (args_.cache == CacheType::s8) {
      expect(7, DataType::kInt16, {args_.rows, args_.groups, args_.capacity});
      expect(8, DataType::kInt16, {args_.rows, args_.groups, args_.capacity});
    }
    expect_output(DataType::kFloat32, {args_.rows, args_.tokens, args_.heads * dim});
    if (failed()) return;
    const std::string error = attention_size_error(args_);
    if (!error.empty()) fail(error);
  }

  void run() final {
    args_.qkv = data<const float>(0);
    args_.cos = data<const float>(1);
    args_.sin = data<const float>(2);
    args_.start = data<const int32_t>(3);
    args_.length = data<const int32_t>(4);
    args_.k_cache = data<void>(5);
    args_.v_cache = data<void>(6);
    if (args_.cache == CacheType::s8) {
      args_.k_scale = data<uint16_t>(7);
      args_.v_scale = data<uint16_t>(8);
    }
    args_.out = output<float>();
    const std::string error = attention_range_error(args_);
    if (!error.empty()) return fail(error);
    args_.scratch = attention_scratch(args_);
    const auto kernel = kernels(isa_)->fused_attention;
    ThreadPool::instance().run(threads_, [&](Worker& me) { kernel(args_, me); });
  }

  AttentionArgs args_ = {};
};

// The shapes of the outputs, which the exporter wrote into the graph already: Lite asks for them again.
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

int64_t number(const std::map<std::string, std::string>& attributes, const char* name) {
  const auto found = attributes.find(name);
  return found == attributes.end() ? 0 : std::stoll(found->second);
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
  // Lite looks a kernel up by the type of its first input.
  for (const DataType type : {DataType::kFloat32, DataType::kInt32})
    mindspore::registry::RegisterKernel::RegCustomKernel(chars("CPU"), {}, type, chars(op), create);
}

}  // namespace
}  // namespace edgellama

// Registers the operators with the MindSpore Lite that this process has loaded (its libraries must be RTLD_GLOBAL).
EDGELLAMA_API void edgellama_register() {
  using namespace edgellama;
  static std::once_flag once;
  std::call_once(once, [] {
    add<EmbeddingOperator>("EdgeEmbedding", [](const auto& inputs, const auto& attributes) -> std::vector<int64_t> {
      if (inputs.empty() || inputs[0].Shape().size() != 2) return {};
      return {inputs[0].Shape()[0], inputs[0].Shape()[1], number(attributes, "width")};
    });
    add<LinearOperator>("EdgeLinear", [](const auto& inputs, const auto& attributes) -> std::vector<int64_t> {
      if (inputs.empty() || inputs[0].Shape().size() != 3) return {};
      const std::vector<int64_t>& x = inputs[0].Shape();
      if (number(attributes, "last_only")) return {x[0], number(attributes, "out")};
      return {x[0], x[1], number(attributes, "out")};
    });
    add<AttentionOperator>("FusedAttention", [](const auto& inputs, const auto& attributes) -> std::vector<int64_t> {
      if (inputs.size() < 6 || inputs[0].Shape().size() != 3 || inputs[5].Shape().size() != 4) return {};
      const std::vector<int64_t>& x = inputs[0].Shape();
      return {x[0], x[1], number(attributes, "heads") * inputs[5].Shape()[3]};
    });
  });
}
