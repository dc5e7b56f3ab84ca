// The part of MindSpore Lite's interface that the plugin uses, and calls of the operators with fuzzed attributes and
// shapes. A tensor has exactly the bytes of its shape.
#include "lite/fuzz_lite.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "base/abi.h"
#include "base/export.h"
#include "linear/weight_format.h"
#include "lite/lite_api.h"

EDGELLAMA_API void edgellama_register();

namespace mindspore {

class MSTensor::Impl {
 public:
  ~Impl() { ::operator delete(data, std::align_val_t{64}); }
  enum DataType type = DataType::kFloat32;
  std::vector<int64_t> shape;
  void* data = nullptr;
};

struct Status::Data {
  StatusCode code;
};

Status::Status(enum StatusCode code, const std::vector<char>&) : data_(new Data{code}) {}

namespace {

int64_t bytes_of(enum DataType type) {
  return type == DataType::kInt8 || type == DataType::kUInt8 ? 1 : type == DataType::kInt16 ? 2 : 4;
}

std::map<std::string, registry::CreateKernel>& creators() {
  static std::map<std::string, registry::CreateKernel> found;
  return found;
}
std::map<std::string, registry::KernelInterfaceCreator>& interfaces() {
  static std::map<std::string, registry::KernelInterfaceCreator> found;
  return found;
}

}  // namespace

MSTensor::~MSTensor() = default;
enum DataType MSTensor::DataType() const { return impl_->type; }
const std::vector<int64_t>& MSTensor::Shape() const { return impl_->shape; }
std::shared_ptr<const void> MSTensor::Data() const { return std::shared_ptr<const void>(impl_, impl_->data); }
void* MSTensor::MutableData() {
  if (!impl_->data) {
    impl_->data = ::operator new(DataSize(), std::align_val_t{64});
    std::memset(impl_->data, 0x2c, DataSize());
  }
  return impl_->data;
}
size_t MSTensor::DataSize() const {
  size_t size = static_cast<size_t>(bytes_of(impl_->type));
  for (const int64_t axis : impl_->shape) size *= static_cast<size_t>(axis);
  return size;
}
std::vector<char> MSTensor::CharName() const { return {'t', '\n', 'x'}; }
void MSTensor::SetShape(const std::vector<int64_t>& shape) {
  if (!impl_) impl_ = std::make_shared<Impl>();
  impl_->shape = shape;
  ::operator delete(impl_->data, std::align_val_t{64});
  impl_->data = nullptr;
}
void MSTensor::SetDataType(enum DataType type) { impl_->type = type; }
int32_t Context::GetThreadNum() const { return 2; }

namespace registry {

Status RegisterKernel::RegCustomKernel(const std::vector<char>&, const std::vector<char>&, enum DataType,
                                       const std::vector<char>& op, CreateKernel creator) {
  creators()[std::string(op.begin(), op.end())] = creator;
  return {kSuccess, {}};
}
Status RegisterKernelInterface::CustomReg(const std::vector<char>&, const std::vector<char>& op,
                                          KernelInterfaceCreator creator) {
  interfaces()[std::string(op.begin(), op.end())] = creator;
  return {kSuccess, {}};
}

}  // namespace registry
}  // namespace mindspore

namespace edgellama {
namespace {

using mindspore::DataType;
using mindspore::MSTensor;

constexpr double kMostBytes = 1 << 22;

// A FlatBuffers table with the attributes, as MindSpore Lite passes it. Tables have two fields, at bytes 4 and 8.
class Flat {
 public:
  explicit Flat(const std::vector<std::pair<std::string, std::string>>& attributes) {
    const size_t primitive = table(), custom = link(primitive + 8, table());
    bytes[primitive + 4] = 1;
    link(custom + 4, text("Custom"));
    const size_t list = link(custom + 8, number(static_cast<uint32_t>(attributes.size())));
    for (size_t i = 0; i < attributes.size(); ++i) number(0);
    for (size_t i = 0; i < attributes.size(); ++i) {
      const size_t attribute = link(list + 4 + 4 * i, table());
      link(attribute + 4, text(attributes[i].first));
      link(attribute + 8, text(attributes[i].second));
    }
    at = primitive;
  }
  const mindspore::schema::Primitive* primitive() const {
    return reinterpret_cast<const mindspore::schema::Primitive*>(bytes.data() + at);
  }

 private:
  std::vector<uint8_t> bytes;
  size_t at = 0;

  size_t table() {
    for (const uint16_t entry : {8, 12, 4, 8}) append(&entry, 2);  // the vtable: its size, the table's, two offsets
    const size_t begin = bytes.size();
    number(8);  // the distance of the vtable
    number(0);
    number(0);
    return begin;
  }
  size_t number(uint32_t value) {
    append(&value, 4);
    return bytes.size() - 4;
  }
  size_t text(const std::string& value) {
    const size_t begin = number(static_cast<uint32_t>(value.size()));
    append(value.data(), value.size());
    return begin;
  }
  size_t link(size_t from, size_t to) {
    const uint32_t distance = static_cast<uint32_t>(to - from);
    std::memcpy(bytes.data() + from, &distance, 4);
    return to;
  }
  void append(const void* data, size_t size) {
    const uint8_t* const begin = static_cast<const uint8_t*>(data);
    bytes.insert(bytes.end(), begin, begin + size);
  }
};

struct Case {
  std::string op;
  std::vector<std::pair<std::string, std::string>> attributes;
  std::vector<MSTensor> inputs, outputs;

  void attribute(const char* name, int value) { attributes.emplace_back(name, std::to_string(value)); }
  void input(DataType type, const std::vector<int64_t>& shape) { add(inputs, type, shape); }
  void output(const std::vector<int64_t>& shape) { add(outputs, DataType::kFloat32, shape); }
  static void add(std::vector<MSTensor>& list, DataType type, const std::vector<int64_t>& shape) {
    list.emplace_back();
    list.back().SetShape(shape);
    list.back().SetDataType(type);
  }
};

// Small sizes most of the time: the arguments are right, and fuzz_operator changes some of them.
int small(FuzzInput& in, int most) { return 1 + in.choice(most); }

const char* const kFormatNames[] = {"f32", "bf16", "int8", "int4", "q4_0", "w4g32", "w4g64", "w4g128"};

Case embedding(FuzzInput& in) {
  Case c;
  const int format = in.choice(kFormatCount), rows = small(in, 3), tokens = small(in, 9), vocabulary = small(in, 40);
  const int width = small(in, 70);
  c.op = "EdgeEmbedding";
  c.attributes.emplace_back("format", kFormatNames[format]);
  c.attribute("vocabulary", vocabulary);
  c.attribute("width", width);
  c.input(DataType::kInt32, {rows, tokens});
  c.input(DataType::kUInt8, {panel_count(vocabulary), int64_t(panel_bytes(static_cast<Format>(format), width))});
  c.input(DataType::kInt32, {rows});
  c.output({rows, tokens, width});
  return c;
}

Case head(FuzzInput& in) {
  Case c;
  const int format = in.choice(kFormatCount), rows = small(in, 3), tokens = small(in, 9), vocabulary = small(in, 40);
  const int width = small(in, 70);
  c.op = "EdgeHead";
  c.attributes.emplace_back("format", kFormatNames[format]);
  c.attribute("vocabulary", vocabulary);
  c.attributes.emplace_back("eps", "1e-05");
  c.input(DataType::kFloat32, {rows, tokens, width});
  c.input(DataType::kUInt8, {panel_count(vocabulary), int64_t(panel_bytes(static_cast<Format>(format), width))});
  c.input(DataType::kInt32, {rows});
  c.input(DataType::kFloat32, {width});
  c.output({rows, vocabulary});
  return c;
}

Case decoder_layer(FuzzInput& in) {
  Case c;
  const int format = in.choice(kFormatCount), cache = in.choice(3), rows = small(in, 2), tokens = small(in, 6);
  const int groups = small(in, 2), heads = groups * small(in, 3), dim = 2 * small(in, 17), capacity = small(in, 40);
  const int hidden = small(in, 70), inner = small(in, 70), biases = in.choice(16);
  c.op = "EdgeDecoderLayer";
  c.attributes.emplace_back("format", kFormatNames[format]);
  c.attributes.emplace_back("cache", cache == 0 ? "f32" : cache == 1 ? "f16" : "s8");
  c.attributes.emplace_back("eps", "1e-05");
  c.attributes.emplace_back("scale", "0.25");
  c.attribute("heads", heads);
  c.attribute("window", in.choice(4) ? 0 : in.value());
  c.attribute("inner", inner);
  const char* const names[] = {"q_bias", "o_bias", "gate_bias", "down_bias"};
  for (int i = 0; i < 4; ++i) c.attribute(names[i], biases >> i & 1);
  int64_t bytes = 0;
  const auto part = [&](long in_size, long panels, bool norm, bool bias) {
    bytes = round_up(bytes + panels * int64_t(panel_bytes(static_cast<Format>(format), in_size)), 64);
    if (norm) bytes = round_up(bytes + in_size * 4, 64);
    if (bias) bytes = round_up(bytes + panels * kPanel * 4, 64);
  };
  part(hidden, panel_count((heads + 2 * groups) * dim), true, biases & 1);
  part(heads * dim, panel_count(hidden), false, biases & 2);
  part(hidden, 2 * panel_count(inner), true, biases & 4);
  part(inner, panel_count(hidden), false, biases & 8);
  c.input(DataType::kFloat32, {rows, tokens, hidden});
  c.input(DataType::kInt32, {rows});
  c.input(DataType::kInt32, {rows});
  const int positions = capacity + in.choice(3);
  for (int i = 0; i < 2; ++i) c.input(DataType::kFloat32, {positions, dim / 2});
  c.input(DataType::kUInt8, {bytes});
  const DataType types[] = {DataType::kFloat32, DataType::kInt16, DataType::kInt8};
  for (int i = 0; i < 2; ++i) c.input(types[cache], {rows, groups, capacity, dim});
  if (cache == 2)
    for (int i = 0; i < 2; ++i) c.input(DataType::kInt16, {rows, groups, capacity});
  c.output({rows, tokens, hidden});
  return c;
}

// Changes one attribute, type, shape or number of tensors.
void change(Case& c, FuzzInput& in) {
  const int kind = in.choice(8);
  std::vector<MSTensor>& list = in.choice(5) ? c.inputs : c.outputs;
  if (kind == 0) {
    c.attributes[in.choice(static_cast<int>(c.attributes.size()))].second = in.text();
  } else if (kind == 1) {
    c.attributes[in.choice(static_cast<int>(c.attributes.size()))].second = std::to_string(in.size());
  } else if (kind == 2) {
    c.attributes.erase(c.attributes.begin() + in.choice(static_cast<int>(c.attributes.size())));
    if (c.attributes.empty()) c.attributes.emplace_back(in.text(), in.text());
  } else if (kind == 3) {
    if (list.size() > 1) list.pop_back();
  } else if (!list.empty()) {
    MSTensor& tensor = list[in.choice(static_cast<int>(list.size()))];
    std::vector<int64_t> shape = tensor.Shape();
    if (kind == 4) {
      static constexpr DataType kTypes[] = {DataType::kInt8, DataType::kInt16, DataType::kInt32, DataType::kUInt8,
                                            DataType::kFloat32};
      tensor.SetDataType(kTypes[in.choice(5)]);
    } else if (kind == 5) {
      if (in.choice(2) || shape.empty()) shape.push_back(in.size());
      else shape.pop_back();
    } else if (!shape.empty()) {
      int64_t& axis = shape[in.choice(static_cast<int>(shape.size()))];
      axis = in.choice(4) ? in.size() : axis + (int64_t(1) << 32);
    }
    tensor.SetShape(shape);
  }
}

bool fits(const std::vector<MSTensor>& tensors) {
  for (const MSTensor& tensor : tensors) {
    double bytes = 4;
    for (const int64_t axis : tensor.Shape()) bytes *= axis > 0 ? static_cast<double>(axis) : 0.0;
    if (bytes > kMostBytes) return false;
  }
  return true;
}

}  // namespace

void fuzz_operator(FuzzInput& in) {
  static const bool registered = (edgellama_register(), true);
  (void)registered;
  const int which = in.choice(4);
  Case c = which == 0 ? embedding(in) : which == 1 ? head(in) : decoder_layer(in);
  c.attribute("abi", kAbi);
  c.attributes.emplace_back("name", "layer");
  for (int changes = in.choice(4); changes > 0; --changes) change(c, in);
  const Flat flat(c.attributes);
  const mindspore::Context context;
  const auto kernel = mindspore::creators()[c.op](c.inputs, c.outputs, flat.primitive(), &context);
  std::vector<MSTensor> inferred(1);
  inferred[0].SetShape({});
  mindspore::interfaces()[c.op]()->Infer(&c.inputs, &inferred, flat.primitive());
  bool accepted = kernel->Prepare() == 0;
  if (in.choice(4) == 0) {  // other sizes after the graph was built; the copies share their tensors with the operator
    change(c, in);
    accepted = kernel->ReSize() == 0 && accepted;
  }
  if (!accepted || !fits(kernel->inputs()) || !fits(kernel->outputs())) return;
  for (const std::vector<MSTensor>* list : {&kernel->inputs(), &kernel->outputs()})
    for (MSTensor tensor : *list) {
      if (tensor.DataType() == DataType::kInt32 && tensor.DataSize() < 4096) {
        int32_t* const values = static_cast<int32_t*>(tensor.MutableData());
        for (size_t i = 0; i < tensor.DataSize() / 4; ++i) values[i] = in.value();
      }
      tensor.MutableData();
    }
  kernel->Execute();
}

}  // namespace edgellama
