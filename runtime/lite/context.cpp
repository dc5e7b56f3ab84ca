// Context: thread and device settings. mindspore_lite/context.py needs one class for each kind of device.
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "include/api/context.h"

namespace edgellama {
namespace {

using mindspore::AscendDeviceInfo;
using mindspore::Context;
using mindspore::CPUDeviceInfo;
using mindspore::DeviceInfoContext;
using mindspore::DeviceType;
using mindspore::GPUDeviceInfo;

// mindspore_lite/context.py sets the core list and the mode under two names; in C++ it is one overloaded function.
void SetAffinityMode(Context *self, int mode) { self->SetThreadAffinity(mode); }
void SetAffinityCores(Context *self, const std::vector<int> &cores) { self->SetThreadAffinity(cores); }

}  // namespace

void BindContext(py::module_ &m) {
  py::enum_<DeviceType>(m, "DeviceType")
      .value("kCPU", DeviceType::kCPU)
      .value("kGPU", DeviceType::kGPU)
      .value("kKirinNPU", DeviceType::kKirinNPU)
      .value("kAscend", DeviceType::kAscend)
      .value("kInvalidDeviceType", DeviceType::kInvalidDeviceType);

  py::class_<DeviceInfoContext, std::shared_ptr<DeviceInfoContext>>(m, "DeviceInfoContextBind")
      .def("get_device_type", &DeviceInfoContext::GetDeviceType);

  py::class_<CPUDeviceInfo, DeviceInfoContext, std::shared_ptr<CPUDeviceInfo>>(m, "CPUDeviceInfoBind")
      .def(py::init<>())
      .def("set_enable_fp16", &CPUDeviceInfo::SetEnableFP16)
      .def("get_enable_fp16", &CPUDeviceInfo::GetEnableFP16);

  py::class_<GPUDeviceInfo, DeviceInfoContext, std::shared_ptr<GPUDeviceInfo>>(m, "GPUDeviceInfoBind")
      .def(py::init<>())
      .def("set_device_id", &GPUDeviceInfo::SetDeviceID)
      .def("get_device_id", &GPUDeviceInfo::GetDeviceID)
      .def("get_rank_id", &GPUDeviceInfo::GetRankID)
      .def("get_group_size", &GPUDeviceInfo::GetGroupSize)
      .def("set_enable_fp16", &GPUDeviceInfo::SetEnableFP16)
      .def("get_enable_fp16", &GPUDeviceInfo::GetEnableFP16);

  py::class_<AscendDeviceInfo, DeviceInfoContext, std::shared_ptr<AscendDeviceInfo>>(m, "AscendDeviceInfoBind")
      .def(py::init<>())
      .def("set_device_id", &AscendDeviceInfo::SetDeviceID)
      .def("get_device_id", &AscendDeviceInfo::GetDeviceID)
      .def("set_precision_mode", [](AscendDeviceInfo &self, const std::string &mode) { self.SetPrecisionMode(mode); })
      .def("get_precision_mode", [](const AscendDeviceInfo &self) { return self.GetPrecisionMode(); });

  py::class_<Context, std::shared_ptr<Context>>(m, "ContextBind")
      .def(py::init<>())
      .def("append_device_info",
           [](Context &self, const std::shared_ptr<DeviceInfoContext> &info) {
             self.MutableDeviceInfo().push_back(info);
           })
      .def("clear_device_info", [](Context &self) { self.MutableDeviceInfo().clear(); })
      .def("get_device_list", [](Context &self) { return self.MutableDeviceInfo(); })
      .def("set_thread_num", &Context::SetThreadNum)
      .def("get_thread_num", &Context::GetThreadNum)
      .def("set_inter_op_parallel_num", &Context::SetInterOpParallelNum)
      .def("get_inter_op_parallel_num", &Context::GetInterOpParallelNum)
      .def("set_thread_affinity_mode", &SetAffinityMode)
      .def("get_thread_affinity_mode", &Context::GetThreadAffinityMode)
      .def("set_thread_affinity_core_list", &SetAffinityCores)
      .def("get_thread_affinity_core_list", &Context::GetThreadAffinityCoreList);
}

}  // namespace edgellama
