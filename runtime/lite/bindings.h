// Shared by the binding's source files: the tensor that Python holds, and one registration function for each topic.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "include/api/model.h"
#include "include/api/types.h"

namespace edgellama {

namespace py = pybind11;

// The owner of the bytes that a tensor points to.
enum class Storage {
  kNumpy,    // the numpy array TensorBind::array; allocated on first use if the caller did not set one
  kRuntime,  // MindSpore Lite; the tensor is an output of predict
};

// A tensor as Python holds it. The data of an input is always in a numpy array, so a view of it stays valid.
struct TensorBind {
  mindspore::MSTensor tensor;
  Storage storage = Storage::kNumpy;
  py::object array;             // None until data is set
  std::shared_ptr<void> model;  // the model that the tensor points into, kept alive; empty for a tensor of CreateTensor

  TensorBind(mindspore::MSTensor t, Storage s, std::shared_ptr<void> m)
      : tensor(std::move(t)), storage(s), array(py::none()), model(std::move(m)) {}

  // True if the data has exactly as many bytes as the tensor's current shape needs.
  bool HasData() const;

  // Makes the tensor use the array's memory, and keeps the array.
  void Attach(const py::array &data);
};

void BindTypes(py::module_ &m);
void BindTensor(py::module_ &m);
void BindContext(py::module_ &m);
void BindModel(py::module_ &m);

}  // namespace edgellama
