// The C interface of the binding: what _c_lite_wrapper.py calls through ctypes. One library serves every Python version.
//
// Functions that can fail return -1 and keep a message for edgellama_error. They let no exception through.
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "include/api/model.h"
#include "include/api/types.h"

#define EDGELLAMA_EXPORT extern "C" __attribute__((visibility("default")))

namespace edgellama {

// A tensor that Python holds. Python owns the memory of every tensor but the outputs of predict.
struct Tensor {
  mindspore::MSTensor tensor;
  bool output = false;           // its data belongs to MindSpore Lite
  void *data = nullptr;          // what Python attached
  size_t bytes = 0;              // bytes at `data`
  std::shared_ptr<void> model;   // the model that the tensor points into, kept alive; empty for a tensor of Python's own

  Tensor(mindspore::MSTensor made, bool is_output, std::shared_ptr<void> owner)
      : tensor(std::move(made)), output(is_output), model(std::move(owner)) {}

  // True if the data has exactly as many bytes as the tensor's current shape needs.
  bool HasData() const { return output || (data != nullptr && bytes == tensor.DataSize()); }

  void Attach(void *memory, size_t size) {
    data = memory;
    bytes = size;
    tensor.SetData(memory, false);
  }
};

struct Model {
  std::shared_ptr<mindspore::Model> model = std::make_shared<mindspore::Model>();
  std::mutex mutex;                          // MindSpore Lite can run only one call of a model at a time
  std::vector<mindspore::MSTensor> inputs;   // those that Python holds
};

// A device of the context, as _c_lite_wrapper.py passes it. device_id is -1 if it is not set.
struct Device {
  int kind;  // mindspore::DeviceType
  int device_id;
  int enable_fp16;
  const char *precision_mode;
};

// Keeps the message for edgellama_error. Returns -1.
int Fail(const std::string &message);

// Keeps a text for the caller until the next call of this thread.
const char *Keep(const std::string &text);

template <typename F>
auto Guard(F &&work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::exception &error) {
    return static_cast<decltype(work())>(Fail(error.what()));
  } catch (...) {
    return static_cast<decltype(work())>(Fail("an exception of unknown type"));
  }
}

}  // namespace edgellama
