// Tensor: its name, type, shape and format, and the memory that it shares with a numpy array.
#include <algorithm>
#include <cstdint>

#include "handles.h"

namespace edgellama {
namespace {

using mindspore::MSTensor;

thread_local std::string error_text, kept_text;

}  // namespace

int Fail(const std::string &message) {
  error_text = message;
  return -1;
}

const char *Keep(const std::string &text) {
  kept_text = text;
  return kept_text.c_str();
}

EDGELLAMA_EXPORT const char *edgellama_error() { return error_text.c_str(); }

EDGELLAMA_EXPORT Tensor *edgellama_tensor_new() {
  try {
    const std::unique_ptr<MSTensor, decltype(&MSTensor::DestroyTensorPtr)> made(
        MSTensor::CreateTensor("", mindspore::DataType::kNumberTypeFloat32, {}, nullptr, 0),
        MSTensor::DestroyTensorPtr);
    return made == nullptr ? nullptr : new Tensor(*made, false, nullptr);
  } catch (...) {
    return nullptr;
  }
}

EDGELLAMA_EXPORT void edgellama_tensor_free(Tensor *self) { delete self; }

EDGELLAMA_EXPORT int edgellama_tensor_set_name(Tensor *self, const char *name) {
  return Guard([&] { return self->tensor.SetTensorName(name), 0; });
}

EDGELLAMA_EXPORT const char *edgellama_tensor_name(Tensor *self) { return Keep(self->tensor.Name()); }

EDGELLAMA_EXPORT void edgellama_tensor_set_type(Tensor *self, int type) {
  self->tensor.SetDataType(static_cast<mindspore::DataType>(type));
}

EDGELLAMA_EXPORT int edgellama_tensor_type(Tensor *self) { return static_cast<int>(self->tensor.DataType()); }

EDGELLAMA_EXPORT void edgellama_tensor_set_format(Tensor *self, int format) {
  self->tensor.SetFormat(static_cast<mindspore::Format>(format));
}

EDGELLAMA_EXPORT int edgellama_tensor_format(Tensor *self) { return static_cast<int>(self->tensor.format()); }

EDGELLAMA_EXPORT int edgellama_tensor_set_shape(Tensor *self, const int64_t *dims, size_t count) {
  return Guard([&] { return self->tensor.SetShape({dims, dims + count}), 0; });
}

// Writes at most `capacity` dimensions. Returns how many the tensor has.
EDGELLAMA_EXPORT size_t edgellama_tensor_shape(Tensor *self, int64_t *dims, size_t capacity) {
  const std::vector<int64_t> &shape = self->tensor.Shape();
  std::copy_n(shape.begin(), std::min(capacity, shape.size()), dims);
  return shape.size();
}

EDGELLAMA_EXPORT int64_t edgellama_tensor_elements(Tensor *self) { return self->tensor.ElementNum(); }

EDGELLAMA_EXPORT size_t edgellama_tensor_bytes(Tensor *self) { return self->tensor.DataSize(); }

EDGELLAMA_EXPORT int edgellama_tensor_is_null(Tensor *self) { return self->tensor == nullptr; }

EDGELLAMA_EXPORT int edgellama_tensor_has_data(Tensor *self) { return self->HasData(); }

EDGELLAMA_EXPORT int edgellama_tensor_attach(Tensor *self, void *data, size_t bytes) {
  return Guard([&] { return self->Attach(data, bytes), 0; });
}

// The address of an output's data; null if it holds none.
EDGELLAMA_EXPORT void *edgellama_tensor_data(Tensor *self) { return self->tensor.MutableData(); }

}  // namespace edgellama
