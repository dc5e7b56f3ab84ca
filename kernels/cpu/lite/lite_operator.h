// The base class of the custom operators: reads attributes, checks tensors, and reports errors with the tensor's name.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "linear/weight_format.h"
#include "lite/lite_api.h"
#include "lite/lite_attributes.h"

namespace edgellama {

using mindspore::DataType;
using mindspore::MSTensor;

// In the order of enum class Format.
const std::vector<const char*> kFormats = {"f32", "bf16", "int8", "int4", "q4_0", "w4g32", "w4g64", "w4g128"};

class Operator : public mindspore::kernel::Kernel {
 public:
  Operator(const char* op, const std::vector<MSTensor>& inputs, const std::vector<MSTensor>& outputs,
           const mindspore::schema::Primitive* primitive, const mindspore::Context* context);

  int Prepare() final;
  int Execute() final;
  // The sizes of the inputs have changed: checks them again.
  int ReSize() final;
  mindspore::schema::PrimitiveType type() const final {
    return static_cast<mindspore::schema::PrimitiveType>(primitive_type(primitive_));
  }

 protected:
  // Reads the attributes and checks the shapes, once, when the graph is built. Calls fail() on an error.
  virtual void prepare() = 0;
  // Runs one step. Calls fail() if the values of the inputs are wrong.
  virtual void run() = 0;

  // Prints the error to stderr and makes the call fail. Only the first error of a call is printed.
  void fail(const std::string& what);
  bool failed() const { return failed_; }

  // The value of an attribute. Fails if it is missing.
  int integer(const char* attribute);
  float real(const char* attribute);
  // The index of the attribute's text in `choices`. Fails if it is not one of them.
  int choice(const char* attribute, const std::vector<const char*>& choices);
  // The same; 0 if the attribute is missing.
  float optional_real(const char* attribute);
  int optional_choice(const char* attribute, const std::vector<const char*>& choices);

  // Fails if the input, or the output, does not have this type and this shape. A size of -1 matches any size.
  void expect(size_t input, DataType type, const std::vector<int64_t>& shape);
  void expect_output(DataType type, const std::vector<int64_t>& shape);
  std::string tensor_name(size_t input) const;
  // A size of an input, or an attribute that is a size. Fails unless it is in 1..kMostSize, and returns 1 then.
  int size(size_t input, size_t axis);
  int size_attribute(const char* attribute);

  template <typename T>
  T* data(size_t input) {
    return static_cast<T*>(const_cast<void*>(inputs_[input].Data().get()));
  }
  template <typename T>
  T* output() {
    return static_cast<T*>(outputs_[0].MutableData());
  }

  const Isa isa_;
  int threads_ = 1;

 private:
  std::string op_;  // Prepare adds the node's name
  const std::map<std::string, std::string> attributes_;
  bool failed_ = false;
  const std::string* attribute(const char* name);
};

}  // namespace edgellama
