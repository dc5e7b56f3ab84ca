// Model: build, resize and predict, without the interpreter lock while MindSpore Lite works.
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

class ModelBind {
 public:
  Status LoadConfig(const std::string &path) { return model_->LoadConfig(path); }

  Status Build(const std::string &path, ModelType type, const std::shared_ptr<mindspore::Context> &context) {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);
    return model_->Build(path, type, context);
  }

  // The same objects each time, so that the array given to one of them stays alive as long as the model may read it.
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
    std::vector<py::object> arrays;  // stay alive for this call, whatever another thread sets meanwhile
    arrays.reserve(inputs.size());
    for (const auto &input : inputs) {
      if (!input->HasData()) {
        throw std::runtime_error("predict: input '" + input->tensor.Name() + "' needs " +
                                 std::to_string(input->tensor.DataSize()) +
                                 " bytes and holds none of that size: call set_data_from_numpy (again after resize)");
      }
      arrays.push_back(input->array);
    }
    const std::vector<MSTensor> handles = Handles(inputs);
    std::vector<MSTensor> outputs;
    const Status status = Run([&] { return model_->Predict(handles, &outputs); });
    if (!status.IsOk()) {
      throw std::runtime_error("predict failed! Error is " + status.ToString());
    }
    return Wrap(outputs, Storage::kRuntime);
  }

  Status Resize(const Tensors &inputs, const std::vector<std::vector<int64_t>> &dims) {
    const std::vector<MSTensor> handles = Handles(inputs);
    const Status status = Run([&] { return model_->Resize(handles, dims); });
    for (const auto &input : inputs) {  // resize forgets the data; what still fits is given back
      if (input->HasData()) {
        input->Attach(py::reinterpret_borrow<py::array>(input->array));
      }
    }
    return status;
  }

 private:
  template <typename F>
  Status Run(F &&work) {
    py::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(mutex_);  // MindSpore Lite runs one call of a model at a time
    return work();
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
      .def("build_from_file", &ModelBind::Build, py::arg("model_path"), py::arg("model_type"), py::arg("context") = nullptr)
      .def("get_inputs", &ModelBind::GetInputs)
      .def("get_outputs", &ModelBind::GetOutputs)
      .def("predict", &ModelBind::Predict)
      .def("resize", &ModelBind::Resize);
}

}  // namespace edgellama
