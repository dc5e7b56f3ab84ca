// _c_lite_wrapper: the native half of the mindspore_lite package, compiled for the running Python.
//
// It registers the names that mindspore_lite's own Python files look up. Two are left out, because the runtime does not
// use them: the converter (ConverterBind raises an error) and ModelParallelRunner (its Python class checks for the name
// and raises an error).
#include <stdexcept>

#include "bindings.h"
#include "include/api/format.h"
#include "include/api/status.h"
#include "include/registry/converter_context.h"

namespace edgellama {
namespace {

struct ConverterBind {
  ConverterBind() {
    throw std::runtime_error(
        "mindspore_lite.Converter is not part of this build: convert with the converter_lite tool of an official "
        "MindSpore Lite package");
  }
};

}  // namespace

void BindTypes(py::module_ &m) {
  using mindspore::DataType;
  py::enum_<DataType>(m, "DataType")
      .value("kTypeUnknown", DataType::kTypeUnknown)
      .value("kObjectTypeString", DataType::kObjectTypeString)
      .value("kNumberTypeBool", DataType::kNumberTypeBool)
      .value("kNumberTypeInt8", DataType::kNumberTypeInt8)
      .value("kNumberTypeInt16", DataType::kNumberTypeInt16)
      .value("kNumberTypeInt32", DataType::kNumberTypeInt32)
      .value("kNumberTypeInt64", DataType::kNumberTypeInt64)
      .value("kNumberTypeUInt8", DataType::kNumberTypeUInt8)
      .value("kNumberTypeUInt16", DataType::kNumberTypeUInt16)
      .value("kNumberTypeUInt32", DataType::kNumberTypeUInt32)
      .value("kNumberTypeUInt64", DataType::kNumberTypeUInt64)
      .value("kNumberTypeFloat16", DataType::kNumberTypeFloat16)
      .value("kNumberTypeFloat32", DataType::kNumberTypeFloat32)
      .value("kNumberTypeFloat64", DataType::kNumberTypeFloat64)
      .value("kInvalidType", DataType::kInvalidType);

  using mindspore::Format;
  py::enum_<Format>(m, "Format")
      .value("DEFAULT_FORMAT", Format::DEFAULT_FORMAT)
      .value("NCHW", Format::NCHW)
      .value("NHWC", Format::NHWC)
      .value("NHWC4", Format::NHWC4)
      .value("HWKC", Format::HWKC)
      .value("HWCK", Format::HWCK)
      .value("KCHW", Format::KCHW)
      .value("CKHW", Format::CKHW)
      .value("KHWC", Format::KHWC)
      .value("CHWK", Format::CHWK)
      .value("HW", Format::HW)
      .value("HW4", Format::HW4)
      .value("NC", Format::NC)
      .value("NC4", Format::NC4)
      .value("NC4HW4", Format::NC4HW4)
      .value("NCDHW", Format::NCDHW)
      .value("NWC", Format::NWC)
      .value("NCW", Format::NCW)
      .value("NDHWC", Format::NDHWC)
      .value("NC8HW8", Format::NC8HW8);

  using mindspore::ModelType;
  py::enum_<ModelType>(m, "ModelType")
      .value("kMindIR", ModelType::kMindIR)
      .value("kMindIR_Lite", ModelType::kMindIR_Lite);

  using mindspore::Status;
  py::class_<Status>(m, "Status")
      .def("IsOk", &Status::IsOk)
      .def("IsError", &Status::IsError)
      .def("ToString", &Status::ToString);

  using mindspore::converter::FmkType;
  py::enum_<FmkType>(m, "FmkType")
      .value("kFmkTypeTf", FmkType::kFmkTypeTf)
      .value("kFmkTypeCaffe", FmkType::kFmkTypeCaffe)
      .value("kFmkTypeOnnx", FmkType::kFmkTypeOnnx)
      .value("kFmkTypeMs", FmkType::kFmkTypeMs)
      .value("kFmkTypeTflite", FmkType::kFmkTypeTflite)
      .value("kFmkTypePytorch", FmkType::kFmkTypePytorch);

  py::class_<ConverterBind>(m, "ConverterBind").def(py::init<>());
}

}  // namespace edgellama

PYBIND11_MODULE(_c_lite_wrapper, m) {
  edgellama::BindTypes(m);
  edgellama::BindTensor(m);
  edgellama::BindContext(m);
  edgellama::BindModel(m);
}
