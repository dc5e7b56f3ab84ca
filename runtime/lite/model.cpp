// Model: builds, resizes and runs a graph. Python calls these functions without its interpreter lock.
#include <cstdint>

#include "handles.h"
#include "include/api/context.h"

namespace edgellama {
namespace {

using mindspore::MSTensor;
using mindspore::Status;

std::vector<MSTensor> Handles(Tensor *const *tensors, size_t count) {
  std::vector<MSTensor> handles;
  handles.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    handles.push_back(tensors[i]->tensor);
  }
  return handles;
}

std::string Text(const std::vector<int64_t> &shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

// 0, or 1 with MindSpore Lite's message for edgellama_error.
int Result(const Status &status) {
  if (status.IsOk()) {
    return 0;
  }
  Fail(status.ToString());
  return 1;
}

// Why a predict failed, if an input is wrong: MindSpore Lite's status does not say it. Otherwise an empty text.
std::string Mismatch(const std::vector<MSTensor> &given, const std::vector<MSTensor> &wanted) {
  if (given.size() != wanted.size()) {
    return " (" + std::to_string(given.size()) + " inputs given, the model has " + std::to_string(wanted.size()) + ")";
  }
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i].Shape() != wanted[i].Shape()) {
      return " (input '" + wanted[i].Name() + "' is " + Text(given[i].Shape()) + ", the model is set to " +
             Text(wanted[i].Shape()) + ": call Model.resize)";
    }
    if (given[i].DataType() != wanted[i].DataType()) {
      return " (input '" + wanted[i].Name() + "' has another data type than the model's)";
    }
  }
  return "";
}

std::shared_ptr<mindspore::DeviceInfoContext> Info(const Device &device) {
  if (device.kind == mindspore::kAscend) {
    auto info = std::make_shared<mindspore::AscendDeviceInfo>();
    if (device.device_id >= 0) info->SetDeviceID(static_cast<uint32_t>(device.device_id));
    if (*device.precision_mode != '\0') info->SetPrecisionMode(device.precision_mode);
    return info;
  }
  if (device.kind == mindspore::kGPU) {
    auto info = std::make_shared<mindspore::GPUDeviceInfo>();
    if (device.device_id >= 0) info->SetDeviceID(static_cast<uint32_t>(device.device_id));
    info->SetEnableFP16(device.enable_fp16 != 0);
    return info;
  }
  auto info = std::make_shared<mindspore::CPUDeviceInfo>();
  info->SetEnableFP16(device.enable_fp16 != 0);
  return info;
}

// Writes new handles of these tensors. Returns how many there are; if they exceed `capacity`, it writes none.
int64_t Wrap(const std::vector<MSTensor> &tensors, bool output, const Model &self, Tensor **out, size_t capacity) {
  for (size_t i = 0; tensors.size() <= capacity && i < tensors.size(); ++i) {
    out[i] = new Tensor(tensors[i], output, self.model);
  }
  return static_cast<int64_t>(tensors.size());
}

}  // namespace

EDGELLAMA_EXPORT Model *edgellama_model_new() {
  try {
    return new Model;
  } catch (...) {
    return nullptr;
  }
}

EDGELLAMA_EXPORT void edgellama_model_free(Model *self) { delete self; }

EDGELLAMA_EXPORT int edgellama_model_load_config(Model *self, const char *path) {
  return Guard([&] { return Result(self->model->LoadConfig(std::string(path))); });
}

// threads, parallel and affinity_mode: 0 leaves MindSpore Lite's default. cores: processors of the threads.
EDGELLAMA_EXPORT int edgellama_model_build(Model *self, const char *path, int type, int threads, int parallel,
                                           int affinity_mode, const int *cores, size_t core_count,
                                           const Device *devices, size_t device_count) {
  return Guard([&] {
    auto context = std::make_shared<mindspore::Context>();
    if (threads != 0) context->SetThreadNum(threads);
    if (parallel != 0) context->SetInterOpParallelNum(parallel);
    if (affinity_mode != 0) context->SetThreadAffinity(affinity_mode);
    if (core_count != 0) context->SetThreadAffinity(std::vector<int>(cores, cores + core_count));
    for (size_t i = 0; i < device_count; ++i) {
      context->MutableDeviceInfo().push_back(Info(devices[i]));
    }
    const std::lock_guard<std::mutex> lock(self->mutex);
    return Result(self->model->Build(std::string(path), static_cast<mindspore::ModelType>(type), context));
  });
}

// 1 if the model's inputs are still those that edgellama_model_inputs gave last.
EDGELLAMA_EXPORT int edgellama_model_inputs_known(Model *self) {
  return Guard([&] {
    const std::vector<MSTensor> now = self->model->GetInputs();
    bool same = now.size() == self->inputs.size();
    for (size_t i = 0; same && i < now.size(); ++i) {
      same = now[i].impl() == self->inputs[i].impl();
    }
    return same ? 1 : 0;
  });
}

EDGELLAMA_EXPORT int64_t edgellama_model_inputs(Model *self, Tensor **out, size_t capacity) {
  return Guard([&] {
    self->inputs = self->model->GetInputs();
    return Wrap(self->inputs, false, *self, out, capacity);
  });
}

EDGELLAMA_EXPORT int64_t edgellama_model_outputs(Model *self, Tensor **out, size_t capacity) {
  return Guard([&] { return Wrap(self->model->GetOutputs(), true, *self, out, capacity); });
}

// Writes handles of the outputs. Returns how many there are; if they exceed `capacity`, it writes none.
EDGELLAMA_EXPORT int64_t edgellama_model_predict(Model *self, Tensor *const *inputs, size_t count, Tensor **out,
                                                 size_t capacity) {
  return Guard([&]() -> int64_t {
    for (size_t i = 0; i < count; ++i) {
      if (!inputs[i]->HasData()) {
        return Fail("predict: input '" + inputs[i]->tensor.Name() + "' needs " +
                    std::to_string(inputs[i]->tensor.DataSize()) +
                    " bytes and has no data of that size: call set_data_from_numpy (again after resize)");
      }
    }
    const std::vector<MSTensor> handles = Handles(inputs, count);
    std::vector<MSTensor> outputs;
    const std::lock_guard<std::mutex> lock(self->mutex);
    const Status status = self->model->Predict(handles, &outputs);
    if (!status.IsOk()) {
      return Fail("predict failed! Error is " + status.ToString() + Mismatch(handles, self->model->GetInputs()));
    }
    return Wrap(outputs, true, *self, out, capacity);
  });
}

// dims: the dimensions of all inputs, one after the other; ranks: how many each input has.
EDGELLAMA_EXPORT int edgellama_model_resize(Model *self, Tensor *const *inputs, size_t count, const int64_t *dims,
                                            const size_t *ranks) {
  return Guard([&] {
    const std::vector<MSTensor> handles = Handles(inputs, count);
    std::vector<std::vector<int64_t>> shapes;
    for (size_t i = 0; i < count; dims += ranks[i], ++i) {
      shapes.emplace_back(dims, dims + ranks[i]);
      if (handles[i].Shape().size() != ranks[i]) {  // MindSpore Lite accepts this, and then its kernels crash
        return Fail("resize: input '" + handles[i].Name() + "' is " + Text(handles[i].Shape()) +
                    " and cannot take another number of dimensions, as in " + Text(shapes[i]));
      }
    }
    const std::lock_guard<std::mutex> lock(self->mutex);
    const int result = Result(self->model->Resize(handles, shapes));
    for (size_t i = 0; i < count; ++i) {  // resize drops the data: attach the memory that still fits
      if (!inputs[i]->output && inputs[i]->HasData()) {
        inputs[i]->Attach(inputs[i]->data, inputs[i]->bytes);
      }
    }
    return result;
  });
}

}  // namespace edgellama
