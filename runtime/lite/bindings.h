// What the binding's source files share: the tensor that Python holds and one registration function a topic.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "include/api/model.h"
#include "include/api/types.h"

namespace edgellama {

namespace py = pybind11;

// Who owns the bytes that a tensor points at.
enum class Storage {
  kNumpy,    // a numpy array, held in TensorBind::array (allocated on first use when the caller gave none)
  kRuntime,  // MindSpore Lite: an output of predict
};

// A tensor as Python holds it. Data of inputs always lives in a numpy array, so no view of it can dangle.
struct TensorBind {
  mindspore::MSTensor tensor;
  Storage storage = Storage::kNumpy;
  py::object array;             // none until data is set
  std::shared_ptr<void> model;  // what the tensor's implementation points into; empty for a tensor of the caller's

  TensorBind(mindspore::MSTensor t, Storage s, std::shared_ptr<void> m)
      : tensor(std::move(t)), storage(s), array(py::none()), model(std::move(m)) {}

  // True when there are exactly as many bytes as the tensor's present shape asks for.
  bool HasData() const;

  // Makes the tensor use the array's memory, and keeps the array.
  void Attach(const py::array &data);
};

void BindTypes(py::module_ &m);
void BindTensor(py::module_ &m);
void BindContext(py::module_ &m);
void BindModel(py::module_ &m);

}  // namespace edgellama
