#include "lite/lite_decoder_layer.h"

#include "layer/adapters.h"

namespace edgellama {
namespace {

enum Input : size_t { kHidden, kStart, kLength, kCos, kSin, kWeights, kKeys, kValues, kKeyScale, kValueScale };

}  // namespace

void DecoderLayerOperator::prepare() {
  prepare_attention();
  const AttentionArgs& attention = args_.attention;
  if (failed()) return;
  const int hidden = size(kHidden, 2), inner = size_attribute("inner");
  const int heads = attention.heads * attention.head_dim;
  parts_.clear();
  arrays_.clear();
  bytes_ = 0;
  const int norms = optional_choice("norms", {"pre", "post", "both"});
  const bool before = norms != 1, after = norms != 0;
  const Epilogue gate = optional_choice("activation", {"silu", "gelu_pytorch_tanh"}) ? Epilogue::geglu : Epilogue::swiglu;
  const Epilogue add = after ? Epilogue::none : Epilogue::residual_add;
  args_.norm_eps = optional_real("norm_eps");
  add_part(args_.qkv, Epilogue::none, hidden, heads + 2 * attention.groups * attention.head_dim, before, "q_bias");
  add_head_norms();
  add_part(args_.o, add, heads, hidden, false, "o_bias");
  if (after) add_array(args_.attention_norm, hidden);
  add_part(args_.gate_up, gate, hidden, inner, before, "gate_bias");
  add_part(args_.down, add, inner, hidden, false, "down_bias");
  if (after) add_array(args_.mlp_norm, hidden);
  expect(kWeights, DataType::kUInt8, {bytes_});
  expect_output(DataType::kFloat32, {attention.rows, attention.tokens, hidden});
}

void DecoderLayerOperator::prepare_attention() {
  AttentionArgs& a = args_.attention;
  a.heads = size_attribute("heads");
  a.window = integer("window");
  a.scale = real("scale");
  a.softcap = optional_real("softcap");
  a.query_beta = optional_real("query_beta");
  if (a.query_beta != 0) a.query_period = size_attribute("query_period");
  a.norm = static_cast<HeadNorm>(optional_choice("qk_norm", {"none", "each", "whole", "after_rope"}));
  a.norm_eps = optional_real("norm_eps");
  a.cache = static_cast<CacheType>(choice("cache", {"f32", "f16", "s8"}));
  a.rows = size(kHidden, 0);
  a.tokens = size(kHidden, 1);
  a.positions = size(kCos, 0);
  a.groups = size(kKeys, 1);
  a.capacity = size(kKeys, 2);
  a.head_dim = size(kKeys, 3);
  a.threads = threads_;
  const std::vector<int64_t> table = {a.positions, a.head_dim / 2};
  const std::vector<int64_t> scales = {a.rows, a.groups, a.capacity};
  const std::vector<int64_t> cache = {a.rows, a.groups, a.capacity, a.head_dim};
  const DataType types[] = {DataType::kFloat32, DataType::kInt16, DataType::kInt8};
  expect(kHidden, DataType::kFloat32, {-1, -1, -1});
  expect(kStart, DataType::kInt32, {a.rows});
  expect(kLength, DataType::kInt32, {a.rows});
  for (const size_t input : {kCos, kSin}) expect(input, DataType::kFloat32, table);
  for (const size_t input : {kKeys, kValues}) expect(input, types[static_cast<int>(a.cache)], cache);
  if (a.cache == CacheType::s8)
    for (const size_t input : {kKeyScale, kValueScale}) expect(input, DataType::kInt16, scales);
  if (failed()) return;
  const std::string error = attention_size_error(a);
  if (!error.empty()) fail(error);
}

void DecoderLayerOperator::add_part(LinearArgs& args, Epilogue epilogue, int in, int out, bool norm,
                                    const char* bias) {
  LinearShape& shape = args.shape;
  shape.format = static_cast<Format>(choice("format", kFormats));
  shape.epilogue = epilogue;
  shape.eps = real("eps");
  shape.in = in;
  shape.out = out;
  shape.rows = args_.attention.rows;
  shape.tokens = args_.attention.tokens;
  parts_.push_back({&args, take(shape.panels() * int64_t(panel_bytes(shape.format, in)))});
  if (norm) add_array(args.gamma, in);
  if (integer(bias)) add_array(args.bias, shape.panels() * kPanel);
}

void DecoderLayerOperator::add_array(const float*& pointer, int64_t count) {
  arrays_.push_back({take(count * 4), &pointer});
}

void DecoderLayerOperator::add_head_norms() {
  AttentionArgs& a = args_.attention;
  if (a.norm == HeadNorm::none) return;
  const bool whole = a.norm == HeadNorm::whole;
  add_array(a.q_gamma, int64_t(whole ? a.heads : 1) * a.head_dim);
  add_array(a.k_gamma, int64_t(whole ? a.groups : 1) * a.head_dim);
}

int64_t DecoderLayerOperator::take(int64_t bytes) {
  const int64_t begin = bytes_;
  bytes_ = round_up(bytes_ + bytes, 64);
  return begin;
}

void DecoderLayerOperator::run() {
  AttentionArgs& a = args_.attention;
  a.start = data<const int32_t>(kStart);
  a.length = data<const int32_t>(kLength);
  a.cos = data<const float>(kCos);
  a.sin = data<const float>(kSin);
  a.k_cache = data<void>(kKeys);
  a.v_cache = data<void>(kValues);
  if (a.cache == CacheType::s8) {
    a.k_scale = data<uint16_t>(kKeyScale);
    a.v_scale = data<uint16_t>(kValueScale);
  }
  const std::string error = attention_range_error(a);
  if (!error.empty()) return fail(error);
  const uint8_t* const weights = data<const uint8_t>(kWeights);
  for (const Part& part : parts_) {
    part.args->weight = weights + part.weight;
    part.args->length = a.length;
  }
  for (const Array& array : arrays_) *array.pointer = reinterpret_cast<const float*>(weights + array.offset);
  args_.qkv.x = data<const float>(kHidden);
  args_.down.y = output<float>();
  const std::string misfit = choose_adapters(args_);
  if (!misfit.empty()) return fail(misfit);
  run_decoder_layer(args_, isa_, threads_);
}

}  // namespace edgellama
