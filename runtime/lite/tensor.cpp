// Tensor: lets numpy arrays and MindSpore Lite tensors share the same bytes, in both directions.
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"

namespace edgellama {
namespace {

using mindspore::DataType;
using mindspore::MSTensor;

constexpr int kNumpyHalf = 23;  // NPY_HALF; C++17 has no 16-bit float type for dtype::of

py::dtype NumpyType(const MSTensor &tensor) {
  switch (tensor.DataType()) {
    case DataType::kNumberTypeBool:
      return py::dtype::of<bool>();
    case DataType::kNumberTypeInt8:
      return py::dtype::of<int8_t>();
    case DataType::kNumberTypeInt16:
      return py::dtype::of<int16_t>();
    case DataType::kNumberTypeInt32:
      return py::dtype::of<int32_t>();
    case DataType::kNumberTypeInt64:
      return py::dtype::of<int64_t>();
    case DataType::kNumberTypeUInt8:
      return py::dtype::of<uint8_t>();
    case DataType::kNumberTypeUInt16:
      return py::dtype::of<uint16_t>();
    case DataType::kNumberTypeUInt32:
      return py::dtype::of<uint32_t>();
    case DataType::kNumberTypeUInt64:
      return py::dtype::of<uint64_t>();
    case DataType::kNumberTypeFloat16:
      return py::dtype(kNumpyHalf);
    case DataType::kNumberTypeFloat32:
      return py::dtype::of<float>();
    case DataType::kNumberTypeFloat64:
      return py::dtype::of<double>();
    default:
      throw std::runtime_error("tensor '" + tensor.Name() + "' has type " +
                               std::to_string(static_cast<int>(tensor.DataType())) + ", which numpy does not have");
  }
}

// Bytes of the tensor's current shape. Throws if a dimension is still unknown.
size_t ByteSize(const MSTensor &tensor, const py::dtype &dtype) {
  size_t bytes = static_cast<size_t>(dtype.itemsize());
  for (int64_t dim : tensor.Shape()) {
    if (dim < 0) {
      throw std::runtime_error("tensor '" + tensor.Name() + "' has an unknown dimension: call Model.resize first");
    }
    bytes *= static_cast<size_t>(dim);
  }
  return bytes;
}

void SetDataFromNumpy(TensorBind *self, const py::array &array) {
  const auto fail = [&](const std::string &why) {
    throw std::runtime_error("set_data_from_numpy on tensor '" + self->tensor.Name() + "': " + why);
  };
  if (self->storage == Storage::kRuntime) {
    fail("it is an output of predict, whose memory belongs to MindSpore Lite");
  }
  const py::dtype dtype = NumpyType(self->tensor);
  const bool native = array.dtype().byteorder() == '=' || array.dtype().byteorder() == '|';
  if (array.dtype().normalized_num() != dtype.normalized_num() || !native) {
    fail("the array is " + std::string(py::str(array.dtype())) + ", the tensor " + std::string(py::str(dtype)));
  }
  const size_t bytes = ByteSize(self->tensor, dtype);
  if (static_cast<size_t>(array.nbytes()) != bytes) {
    fail("the array holds " + std::to_string(array.nbytes()) + " bytes, the tensor " + std::to_string(bytes));
  }
  constexpr int kNeeded = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & kNeeded) != kNeeded) {
    fail("the array must be C-contiguous and aligned, because the tensor uses its memory (numpy.ascontiguousarray)");
  }
  self->Attach(array);
}

py::array GetDataToNumpy(const std::shared_ptr<TensorBind> &self) {
  const py::dtype dtype = NumpyType(self->tensor);
  const size_t bytes = ByteSize(self->tensor, dtype);
  const std::vector<int64_t> &shape = self->tensor.Shape();
  if (self->storage == Storage::kRuntime) {
    if (bytes == 0) {
      return py::module_::import("numpy").attr("zeros")(shape, dtype);
    }
    void *data = self->tensor.MutableData();
    if (data == nullptr || self->tensor.DataSize() != bytes) {
      throw std::runtime_error("tensor '" + self->tensor.Name() + "' holds no data");
    }
    return py::array(dtype, shape, data, py::cast(self));
  }
  if (!self->HasData()) {
    self->Attach(py::module_::import("numpy").attr("zeros")(shape, dtype));
  }
  const auto owner = py::reinterpret_borrow<py::array>(self->array);
  return py::array(dtype, shape, owner.data(), owner);
}

std::shared_ptr<TensorBind> CreateTensor() {
  const std::unique_ptr<MSTensor, decltype(&MSTensor::DestroyTensorPtr)> made(
      MSTensor::CreateTensor("", DataType::kNumberTypeFloat32, {}, nullptr, 0), MSTensor::DestroyTensorPtr);
  if (made == nullptr) {
    throw std::runtime_error("MindSpore Lite could not create a tensor");
  }
  return std::make_shared<TensorBind>(*made, Storage::kNumpy, nullptr);
}

}  // namespace

bool TensorBind::HasData() const {
  if (storage == Storage::kRuntime) {
    return true;
  }
  return !array.is_none() &&
         static_cast<size_t>(py::reinterpret_borrow<py::array>(array).nbytes()) == tensor.DataSize();
}

void TensorBind::Attach(const py::array &data) {
  tensor.SetData(const_cast<void *>(data.data()), false);
  array = data;
}

void BindTensor(py::module_ &m) {
  py::class_<TensorBind, std::shared_ptr<TensorBind>>(m, "TensorBind")
      .def("set_tensor_name", [](TensorBind &self, const std::string &name) { self.tensor.SetTensorName(name); })
      .def("get_tensor_name", [](const TensorBind &self) { return self.tensor.Name(); })
      .def("set_data_type", [](TensorBind &self, DataType type) { self.tensor.SetDataType(type); })
      .def("get_data_type", [](const TensorBind &self) { return self.tensor.DataType(); })
      .def("set_shape", [](TensorBind &self, const std::vector<int64_t> &shape) { self.tensor.SetShape(shape); })
      .def("get_shape", [](const TensorBind &self) { return self.tensor.Shape(); })
      .def("set_format", [](TensorBind &self, mindspore::Format format) { self.tensor.SetFormat(format); })
      .def("get_format", [](const TensorBind &self) { return self.tensor.format(); })
      .def("get_element_num", [](const TensorBind &self) { return self.tensor.ElementNum(); })
      .def("get_data_size", [](const TensorBind &self) { return self.tensor.DataSize(); })
      .def("is_null", [](const TensorBind &self) { return self.tensor == nullptr; })
      .def("set_data_from_numpy", &SetDataFromNumpy)
      .def("get_data_to_numpy", &GetDataToNumpy);
  m.def("create_tensor", &CreateTensor);
}

}  // namespace edgellama
