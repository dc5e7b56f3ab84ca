#include "lite/lite_operator.h"

#include <cmath>
#include <cstdlib>

#include "base/abi.h"
#include "base/kernels.h"

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

// A text of the graph as a message shows it: without control characters, and not long.
std::string printable(std::string text) {
  if (text.size() > 80) text.resize(80);
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text;
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
  if (name) op_ += " " + printable(*name);
  const int version = integer("abi");
  if (!failed_ && (version < kOldestAbi || version > kAbi))
    fail("the graph was exported for kernel ABI " + std::to_string(version) + ", this library has ABI " +
         std::to_string(kOldestAbi) + " to " + std::to_string(kAbi) + ": export again with this release");
  if (!failed_) prepare();
  return failed_ ? -1 : 0;
}

int Operator::ReSize() {
  failed_ = false;
  prepare();
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
  int number = 0;
  if (value && !read_integer(*value, number)) fail(std::string("attribute ") + name + " is no whole number of 32 bits");
  return number;
}

float Operator::real(const char* name) {
  const std::string* value = attribute(name);
  if (!value) return 0;
  char* end = nullptr;
  const float number = std::strtof(value->c_str(), &end);
  if (value->empty() || *end || !std::isfinite(number)) fail(std::string("attribute ") + name + " is no finite number");
  return number;
}

float Operator::optional_real(const char* name) { return attributes_.count(name) ? real(name) : 0; }

int Operator::optional_choice(const char* name, const std::vector<const char*>& choices) {
  return attributes_.count(name) ? choice(name, choices) : 0;
}

int Operator::choice(const char* name, const std::vector<const char*>& choices) {
  const std::string* value = attribute(name);
  if (!value) return 0;
  for (size_t i = 0; i < choices.size(); ++i)
    if (*value == choices[i]) return static_cast<int>(i);
  fail(std::string("attribute ") + name + " is " + printable(*value) + ", which this library does not know");
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
  return printable(std::string(name.begin(), name.end()));
}

int Operator::size(size_t input, size_t axis) {
  if (input >= inputs_.size() || axis >= inputs_[input].Shape().size()) {
    fail("input " + std::to_string(input) + " is missing or has no axis " + std::to_string(axis));
    return 1;
  }
  const int64_t found = inputs_[input].Shape()[axis];
  if (is_size(found)) return static_cast<int>(found);
  fail(tensor_name(input) + " is " + text(inputs_[input].Shape()) + "; each size must be in 1.." +
       std::to_string(kMostSize));
  return 1;
}

int Operator::size_attribute(const char* name) {
  const int found = integer(name);
  if (is_size(found)) return found;
  fail(std::string("attribute ") + name + " is " + std::to_string(found) + "; needs 1.." + std::to_string(kMostSize));
  return 1;
}

}  // namespace edgellama
