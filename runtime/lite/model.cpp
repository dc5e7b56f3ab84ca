// Model: builds, resizes and runs a graph. Releases Python's interpreter lock while MindSpore Lite works.
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "include/api/context.h"

namespace edgellama {
namespace {

using mindspore::Model;
using mindspore::ModelType;
using mindspore::MSTensor;
using mindspore::Status;
using Tensors = std::vector<std::shared_ptr<TensorBind>>;

std::vector<MSTensor> Handles(const Tensors &tensors) {
  std::vector<MSTensor> handles;
  handles.reserve(tensors.size());
  for (const auto &tensor : tensors) {
    handles.push_back(tensor->tensor);
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

class ModelBind {
 public:
  Status LoadConfig(const std::string &path) { return model_->LoadConfig(path); }

  Status Build(const std::string &path, ModelType type, const std::shared_ptr<mindspore::Context> &context) {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    return model_->Build(path, type, context);
  }

  // Returns the same objects each time. Each keeps its array alive as long as the model may read it.
  const Tensors &GetInputs() {
    const std::vector<MSTensor> now = model_->GetInputs();
    bool same = now.size() == inputs_.size();
    for (size_t i = 0; same && i < now.size(); ++i) {
      same = now[i].impl() == inputs_[i]->tensor.impl();
    }
    if (!same) {
      inputs_ = Wrap(now, Storage::kNumpy);
    }
    return inputs_;
  }

  Tensors GetOutputs() { return Wrap(model_->GetOutputs(), Storage::kRuntime); }

  Tensors Predict(const Tensors &inputs) {
    std::vector<py::object> arrays;  // keeps the arrays alive during this call, even if another thread sets new ones
    arrays.reserve(inputs.size());
    for (const auto &input : inputs) {
      if (!input->HasData()) {
        throw std::runtime_error("predict: input '" + input->tensor.Name() + "' needs " +
                                 std::to_string(input->tensor.DataSize()) +
                                 " bytes and has no data of that size: call set_data_from_numpy (again after resize)");
      }
      arrays.push_back(input->array);
    }
    const std::vector<MSTensor> handles = Handles(inputs);
    std::vector<MSTensor> outputs;
    const Status status = Run([&] { return model_->Predict(handles, &outputs); });
    if (!status.IsOk()) {
      throw std::runtime_error("predict failed! Error is " + status.ToString() + Mismatch(handles));
    }
    return Wrap(outputs, Storage::kRuntime);
  }

  Status Resize(const Tensors &inputs, const std::vector<std::vector<int64_t>> &dims) {
    const std::vector<MSTensor> handles = Handles(inputs);
    for (size_t i = 0; i < handles.size() && i < dims.size(); ++i) {
      if (handles[i].Shape().size() != dims[i].size()) {  // MindSpore Lite accepts this, and then its kernels crash
        throw std::runtime_error("resize: input '" + handles[i].Name() + "' is " + Text(handles[i].Shape()) +
                                 " and cannot take another number of dimensions, as in " + Text(dims[i]));
      }
    }
    const Status status = Run([&] { return model_->Resize(handles, dims); });
    for (const auto &input : inputs) {  // resize drops the data: attach the arrays that still fit
      if (input->storage == Storage::kNumpy && input->HasData()) {
        input->Attach(py::reinterpret_borrow<py::array>(input->array));
      }
    }
    return status;
  }

 private:
  template <typename F>
  Status Run(F &&work) {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);  // MindSpore Lite can run only one call of a model at a time
    return work();
  }

  // Why a predict failed, if an input is wrong: MindSpore Lite's status does not say it. Otherwise an empty text.
  std::string Mismatch(const std::vector<MSTensor> &given) {
    const std::vector<MSTensor> wanted = model_->GetInputs();
    if (given.size() != wanted.size()) {
      return " (" + std::to_string(given.size()) + " inputs given, the model has " + std::to_string(wanted.size()) +
             ")";
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

  Tensors Wrap(const std::vector<MSTensor> &tensors, Storage storage) const {
    Tensors wrapped;
    wrapped.reserve(tensors.size());
    for (const auto &tensor : tensors) {
      wrapped.push_back(std::make_shared<TensorBind>(tensor, storage, model_));
    }
    return wrapped;
  }

  std::shared_ptr<Model> model_ = std::make_shared<Model>();
  std::mutex mutex_;
  Tensors inputs_;
};

}  // namespace

void BindModel(py::module_ &m) {
  py::class_<ModelBind>(m, "ModelBind")
      .def(py::init<>())
      .def("load_config", &ModelBind::LoadConfig)
      .def("build_from_file", &ModelBind::Build)
      .def("get_inputs", &ModelBind::GetInputs)
      .def("get_outputs", &ModelBind::GetOutputs)
      .def("predict", &ModelBind::Predict)
      .def("resize", &ModelBind::Resize);
}

}  // namespace edgellama
