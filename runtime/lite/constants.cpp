// The enumerations that mindspore_lite's Python files look up, with the values of the C++ headers.
#include <string>

#include "handles.h"
#include "include/api/context.h"
#include "include/api/format.h"
#include "include/registry/converter_context.h"

namespace edgellama {
namespace {

struct Constant {
  const char *type;
  const char *name;
  int value;
};

template <typename T>
constexpr Constant Of(const char *type, const char *name, T value) {
  return {type, name, static_cast<int>(value)};
}

using mindspore::DataType;
using mindspore::DeviceType;
using mindspore::Format;
using mindspore::ModelType;
using mindspore::converter::FmkType;

constexpr Constant kConstants[] = {
    Of("DataType", "kTypeUnknown", DataType::kTypeUnknown),
    Of("DataType", "kObjectTypeString", DataType::kObjectTypeString),
    Of("DataType", "kNumberTypeBool", DataType::kNumberTypeBool),
    Of("DataType", "kNumberTypeInt8", DataType::kNumberTypeInt8),
    Of("DataType", "kNumberTypeInt16", DataType::kNumberTypeInt16),
    Of("DataType", "kNumberTypeInt32", DataType::kNumberTypeInt32),
    Of("DataType", "kNumberTypeInt64", DataType::kNumberTypeInt64),
    Of("DataType", "kNumberTypeUInt8", DataType::kNumberTypeUInt8),
    Of("DataType", "kNumberTypeUInt16", DataType::kNumberTypeUInt16),
    Of("DataType", "kNumberTypeUInt32", DataType::kNumberTypeUInt32),
    Of("DataType", "kNumberTypeUInt64", DataType::kNumberTypeUInt64),
    Of("DataType", "kNumberTypeFloat16", DataType::kNumberTypeFloat16),
    Of("DataType", "kNumberTypeFloat32", DataType::kNumberTypeFloat32),
    Of("DataType", "kNumberTypeFloat64", DataType::kNumberTypeFloat64),
    Of("DataType", "kInvalidType", DataType::kInvalidType),
    Of("Format", "DEFAULT_FORMAT", Format::DEFAULT_FORMAT),
    Of("Format", "NCHW", Format::NCHW),
    Of("Format", "NHWC", Format::NHWC),
    Of("Format", "NHWC4", Format::NHWC4),
    Of("Format", "HWKC", Format::HWKC),
    Of("Format", "HWCK", Format::HWCK),
    Of("Format", "KCHW", Format::KCHW),
    Of("Format", "CKHW", Format::CKHW),
    Of("Format", "KHWC", Format::KHWC),
    Of("Format", "CHWK", Format::CHWK),
    Of("Format", "HW", Format::HW),
    Of("Format", "HW4", Format::HW4),
    Of("Format", "NC", Format::NC),
    Of("Format", "NC4", Format::NC4),
    Of("Format", "NC4HW4", Format::NC4HW4),
    Of("Format", "NCDHW", Format::NCDHW),
    Of("Format", "NWC", Format::NWC),
    Of("Format", "NCW", Format::NCW),
    Of("Format", "NDHWC", Format::NDHWC),
    Of("Format", "NC8HW8", Format::NC8HW8),
    Of("ModelType", "kMindIR", ModelType::kMindIR),
    Of("ModelType", "kMindIR_Lite", ModelType::kMindIR_Lite),
    Of("DeviceType", "kCPU", DeviceType::kCPU),
    Of("DeviceType", "kGPU", DeviceType::kGPU),
    Of("DeviceType", "kKirinNPU", DeviceType::kKirinNPU),
    Of("DeviceType", "kAscend", DeviceType::kAscend),
    Of("DeviceType", "kInvalidDeviceType", DeviceType::kInvalidDeviceType),
    Of("FmkType", "kFmkTypeTf", FmkType::kFmkTypeTf),
    Of("FmkType", "kFmkTypeCaffe", FmkType::kFmkTypeCaffe),
    Of("FmkType", "kFmkTypeOnnx", FmkType::kFmkTypeOnnx),
    Of("FmkType", "kFmkTypeMs", FmkType::kFmkTypeMs),
    Of("FmkType", "kFmkTypeTflite", FmkType::kFmkTypeTflite),
    Of("FmkType", "kFmkTypePytorch", FmkType::kFmkTypePytorch),
};

}  // namespace

// Lines "type name value".
EDGELLAMA_EXPORT const char *edgellama_constants() {
  std::string text;
  for (const Constant &constant : kConstants) {
    text += std::string(constant.type) + " " + constant.name + " " + std::to_string(constant.value) + "\n";
  }
  return Keep(text);
}

}  // namespace edgellama
