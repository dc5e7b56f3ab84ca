// The part of MindSpore Lite's C++ interface for custom kernels that the plugin uses. The wheel does not contain its
// headers (register_kernel.h, register_kernel_interface.h, kernel.h with schema/model_generated.h), so this file
// declares the classes, member for member as in release 2.0. Names, the order of virtual functions and data members are
// MindSpore Lite's binary interface: do not change them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#if !defined(_GLIBCXX_USE_CXX11_ABI) || _GLIBCXX_USE_CXX11_ABI != 0
#error "MindSpore Lite's wheel uses the old std::string: compile with -D_GLIBCXX_USE_CXX11_ABI=0"
#endif

namespace mindspore {

enum class DataType : int { kInt8 = 32, kInt16 = 33, kInt32 = 34, kUInt8 = 37, kFloat32 = 43 };
enum StatusCode : uint32_t { kSuccess = 0, kLiteInferError = 0xF0000000u | (0x0FFFFFFF & -500) };

class __attribute__((visibility("default"))) Status {
 public:
  Status(enum StatusCode code, const std::vector<char>& message);

 private:
  struct Data;
  std::shared_ptr<Data> data_;
};

class __attribute__((visibility("default"))) MSTensor {
 public:
  class Impl;
  ~MSTensor();
  enum DataType DataType() const;
  const std::vector<int64_t>& Shape() const;
  std::shared_ptr<const void> Data() const;
  void* MutableData();
  size_t DataSize() const;
  std::vector<char> CharName() const;
  void SetShape(const std::vector<int64_t>& shape);
  void SetDataType(enum DataType type);

 private:
  std::shared_ptr<Impl> impl_;
};

class __attribute__((visibility("default"))) Context {
 public:
  int32_t GetThreadNum() const;
};

namespace schema {
struct Primitive;  // a FlatBuffers table, which lite_attributes.h reads
enum PrimitiveType : uint8_t {};
enum QuantType : int32_t {};
}  // namespace schema

namespace kernel {

template <typename Primitive>
class IKernel {
 public:
  IKernel(const std::vector<MSTensor>& inputs, const std::vector<MSTensor>& outputs, const Primitive* primitive,
          const Context* context)
      : context_(context), inputs_(inputs), outputs_(outputs), primitive_(primitive) {}
  virtual ~IKernel() = default;
  virtual int Prepare() = 0;
  virtual int Execute() = 0;
  virtual int ReSize() = 0;
  virtual void set_inputs(const std::vector<MSTensor>& tensors) { inputs_ = tensors; }
  virtual void set_input(MSTensor tensor, int index) { inputs_[static_cast<size_t>(index)] = tensor; }
  virtual void set_outputs(const std::vector<MSTensor>& tensors) { outputs_ = tensors; }
  virtual void set_output(MSTensor tensor, int index) { outputs_[static_cast<size_t>(index)] = tensor; }
  virtual const std::vector<MSTensor>& inputs() { return inputs_; }
  virtual const std::vector<MSTensor>& outputs() { return outputs_; }

 protected:
  std::string name_;
  const Context* context_ = nullptr;
  std::vector<MSTensor> inputs_;
  std::vector<MSTensor> outputs_;
  const Primitive* primitive_ = nullptr;
  std::map<std::string, std::string> attrs_;
  const std::map<std::string, std::map<std::string, std::string>>* config_ = nullptr;
};

class Kernel : public IKernel<schema::Primitive> {
 public:
  using IKernel::IKernel;
  virtual schema::PrimitiveType type() const { return type_; }
  virtual schema::QuantType quant_type() const { return quant_type_; }

 protected:
  schema::PrimitiveType type_ = static_cast<schema::PrimitiveType>(0);
  schema::QuantType quant_type_ = static_cast<schema::QuantType>(0);
};

class KernelInterface {
 public:
  virtual ~KernelInterface() = default;
  virtual Status Infer(std::vector<MSTensor>* inputs, std::vector<MSTensor>* outputs,
                       const schema::Primitive* primitive) = 0;
  virtual Status Infer(std::vector<MSTensor>* inputs, std::vector<MSTensor>* outputs,
                       const schema::Primitive* primitive, const Kernel* kernel) = 0;
};

}  // namespace kernel

namespace registry {

using CreateKernel = std::function<std::shared_ptr<kernel::Kernel>(
    const std::vector<MSTensor>& inputs, const std::vector<MSTensor>& outputs, const schema::Primitive* primitive,
    const Context* context)>;
using KernelInterfaceCreator = std::function<std::shared_ptr<kernel::KernelInterface>()>;

class __attribute__((visibility("default"))) RegisterKernel {
 public:
  static Status RegCustomKernel(const std::vector<char>& arch, const std::vector<char>& provider, DataType type,
                                const std::vector<char>& op, CreateKernel creator);
};

class __attribute__((visibility("default"))) RegisterKernelInterface {
 public:
  static Status CustomReg(const std::vector<char>& provider, const std::vector<char>& op,
                          KernelInterfaceCreator creator);
};

}  // namespace registry
}  // namespace mindspore
