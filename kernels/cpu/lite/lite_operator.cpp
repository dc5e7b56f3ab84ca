#include "lite/lite_operator.h"

#include <cstdlib>

#include "base/abi.h"

namespace edgellama {
namespace {

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + (shape[i] < 0 ? "?" : std::to_string(shape[i]));
  return out + "]";
}

const char* text(DataType type) {
  switch (type) {
    case DataType::kInt8:
      return "int8";
    case DataType::kInt32:
      return "int32";
    case DataType::kUInt8:
      return "uint8";
    case DataType::kInt16:
      return "int16";
    case DataType::kFloat32:
      return "float32";
  }
  return "another type";
}

bool fits(const MSTensor& tensor, DataType type, const std::vector<int64_t>& shape) {
  const std::vector<int64_t>& found = tensor.Shape();
  if (tensor.DataType() != type || found.size() != shape.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i)
    if (shape[i] >= 0 && shape[i] != found[i]) return false;
  return true;
}

}  // namespace

Operator::Operator(const char* op, const std::vector<MSTensor>& inputs, const std::vector<MSTensor>& outputs,
                   const mindspore::schema::Primitive* primitive, const mindspore::Context* context)
    : Kernel(inputs, outputs, primitive, context),
      isa_(best_isa()),
      op_(op),
      attributes_(custom_attributes(primitive)) {
  if (context && context->GetThreadNum() > 0) threads_ = context->GetThreadNum();
}

int Operator::Prepare() {
  const std::string* name = attribute("name");
  if (name) op_ += " " + *name;
  const int version = integer("abi");
  if (!failed_ && version != kAbi)
    fail("the graph was exported for kernel ABI " + std::to_string(version) + ", this library is ABI " +
         std::to_string(kAbi) + ": export again with this release");
  if (!failed_) prepare();
  return failed_ ? -1 : 0;
}

int Operator::Execute() {
  failed_ = false;
  run();
  return failed_ ? -1 : 0;
}

void Operator::fail(const std::string& what) {
  if (!failed_) std::fprintf(stderr, "edgellama: %s: %s\n", op_.c_str(), what.c_str());
  failed_ = true;
}

const std::string* Operator::attribute(const char* name) {
  const auto found = attributes_.find(name);
  if (found != attributes_.end()) return &found->second;
  fail(std::string("attribute ") + name + " is missing");
  return nullptr;
}

int Operator::integer(const char* name) {
  const std::string* value = attribute(name);
  return value ? std::atoi(value->c_str()) : 0;
}

float Operator::real(const char* name) {
  const std::string* value = attribute(name);
  return value ? std::strtof(value->c_str(), nullptr) : 0;
}

int Operator::choice(const char* name, const std::vector<const char*>& choices) {
  const std::string* value = attribute(name);
  if (!value) return 0;
  for (size_t i = 0; i < choices.size(); ++i)
    if (*value == choices[i]) return static_cast<int>(i);
  fail(std::string("attribute ") + name + " is " + *value + ", which this library does not know");
  return 0;
}

void Operator::expect(size_t input, DataType type, const std::vector<int64_t>& shape) {
  if (failed_) return;
  if (input >= inputs_.size()) return fail("input " + std::to_string(input) + " is missing");
  const MSTensor& tensor = inputs_[input];
  if (!fits(tensor, type, shape))
    fail(tensor_name(input) + " is " + text(tensor.DataType()) + " " + text(tensor.Shape()) + ", needs " + text(type) +
         " " + text(shape));
}

void Operator::expect_output(DataType type, const std::vector<int64_t>& shape) {
  if (failed_) return;
  if (outputs_.size() != 1) return fail(std::to_string(outputs_.size()) + " outputs, needs 1");
  if (!fits(outputs_[0], type, shape))
    fail(std::string("its output is ") + text(outputs_[0].DataType()) + " " + text(outputs_[0].Shape()) + ", needs " +
         text(type) + " " + text(shape));
}

std::string Operator::tensor_name(size_t input) const {
  const std::vector<char> name = inputs_[input].CharName();
  return std::string(name.begin(), name.end());
}

int64_t Operator::size(size_t input, size_t axis) const {
  if (input >= inputs_.size() || axis >= inputs_[input].Shape().size()) return 0;
  return inputs_[input].Shape()[axis];
}

}  // namespace edgellama
