// What the custom operators share: checked attributes and tensors, an error told with the tensor's name.
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

const std::vector<const char*> kFormats = {"f32", "bf16", "int8", "int4", "q4_0"};  // the order of enum class Format

class Operator : public mindspore::kernel::Kernel {
 public:
  Operator(const char* op, const std::vector<MSTensor>& inputs, const std::vector<MSTensor>& outputs,
           const mindspore::schema::Primitive* primitive, const mindspore::Context* context);

  int Prepare() final;
  int Execute() final;
  int ReSize() final { return 0; }
  mindspore::schema::PrimitiveType type() const final {
    return static_cast<mindspore::schema::PrimitiveType>(primitive_type(primitive_));
  }

 protected:
  // When the graph is built: reads attributes, checks shapes. Calls fail() where something does not fit.
  virtual void prepare() = 0;
  // One step. Calls fail() where the inputs' values do not fit.
  virtual void run() = 0;

  void fail(const std::string& what);
  bool failed() const { return failed_; }

  int integer(const char* attribute);
  float real(const char* attribute);
  // The index of the attribute's text among `choices`.
  int choice(const char* attribute, const std::vector<const char*>& choices);

  // Input i must have this type and this shape; -1 takes any size.
  void expect(size_t input, DataType type, const std::vector<int64_t>& shape);
  void expect_output(DataType type, const std::vector<int64_t>& shape);
  std::string tensor_name(size_t input) const;
  int64_t size(size_t input, size_t axis) const;

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
  std::string op_;  // and the node's name, once Prepare has read it
  const std::map<std::string, std::string> attributes_;
  bool failed_ = false;
  const std::string* attribute(const char* name);
};

}  // namespace edgellama
