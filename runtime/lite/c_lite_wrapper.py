"""The native half of the mindspore_lite package, over ctypes: the names that mindspore_lite's Python files look up.

`python -m edgellama.lite install` copies this file to mindspore_lite/lib/_c_lite_wrapper.py, beside LIBRARY. It imports
nothing of this project. Two names of MindSpore Lite are left out, because the runtime does not use them: the converter
(ConverterBind raises an error) and ModelParallelRunner (its Python class checks for the name and raises an error).
"""

from __future__ import annotations

import ctypes
import enum
from array import array
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY = "libedgellama_binding.so"


class _Device(ctypes.Structure):
    """Device of handles.h."""

    _fields_ = (("kind", c_int), ("device_id", c_int), ("enable_fp16", c_int), ("precision_mode", c_char_p))


def _declare(library: Any, functions: dict[str, tuple[Any, ...]]) -> Any:
    """Declare functions of the library: name after "edgellama_" -> (type of the result, types of the arguments)."""
    for name, (result, *arguments) in functions.items():
        function = getattr(library, f"edgellama_{name}")
        function.restype, function.argtypes = result, arguments
    return library


_HANDLES = POINTER(c_void_p)
_PATH = str(Path(__file__).parent / LIBRARY)
# Short calls keep the interpreter lock: to give it up and wait for it again would take longer than the call.
_short = _declare(
    ctypes.PyDLL(_PATH),
    {
        "error": (c_char_p,),
        "constants": (c_char_p,),
        "tensor_new": (c_void_p,),
        "tensor_set_name": (c_int, c_void_p, c_char_p),
        "tensor_name": (c_char_p, c_void_p),
        "tensor_set_type": (None, c_void_p, c_int),
        "tensor_type": (c_int, c_void_p),
        "tensor_set_format": (None, c_void_p, c_int),
        "tensor_format": (c_int, c_void_p),
        "tensor_set_shape": (c_int, c_void_p, POINTER(c_int64), c_size_t),
        "tensor_shape": (c_size_t, c_void_p, POINTER(c_int64), c_size_t),
        "tensor_elements": (c_int64, c_void_p),
        "tensor_bytes": (c_size_t, c_void_p),
        "tensor_is_null": (c_int, c_void_p),
        "tensor_has_data": (c_int, c_void_p),
        "tensor_attach": (c_int, c_void_p, c_void_p, c_size_t),
        "tensor_data": (c_void_p, c_void_p),
        "model_new": (c_void_p,),
        "model_inputs_known": (c_int, c_void_p),
        "model_inputs": (c_int64, c_void_p, _HANDLES, c_size_t),
        "model_outputs": (c_int64, c_void_p, _HANDLES, c_size_t),
    },
)
_long = _declare(
    ctypes.CDLL(_PATH),
    {
        "tensor_free": (None, c_void_p),  # may free the model
        "model_free": (None, c_void_p),
        "model_load_config": (c_int, c_void_p, c_char_p),
        "model_build": (
            *(c_int, c_void_p, c_char_p, c_int, c_int, c_int, c_int),
            *(POINTER(c_int), c_size_t, POINTER(_Device), c_size_t),
        ),
        "model_predict": (c_int64, c_void_p, c_void_p, c_size_t, _HANDLES, c_size_t),
        "model_resize": (c_int, c_void_p, c_void_p, c_size_t, POINTER(c_int64), POINTER(c_size_t)),
    },
)


def _enumeration(name: str) -> Any:
    """Return the enumeration of this name, with the values of the C++ headers."""
    rows = (line.split() for line in _short.edgellama_constants().decode().splitlines())
    return enum.Enum(name, [(member, int(value)) for kind, member, value in rows if kind == name])


DataType: Any = _enumeration("DataType")
DeviceType: Any = _enumeration("DeviceType")
FmkType: Any = _enumeration("FmkType")
Format: Any = _enumeration("Format")
ModelType: Any = _enumeration("ModelType")

_NUMPY = {
    member: np.dtype(member.name.removeprefix("kNumberType").lower())
    for member in DataType
    if member.name.startswith("kNumberType")
}
_MAX_DIMENSIONS = 16


def _check(result: int) -> int:
    """Return the result of a function. Raises RuntimeError with its message if it failed."""
    if result < 0:
        raise RuntimeError(_short.edgellama_error().decode(errors="replace"))
    return result


def _made(handle: int | None) -> int:
    if not handle:
        raise RuntimeError("MindSpore Lite could not create the object")
    return handle


class Status:
    """The result of a call: ok, or the message of an error."""

    def __init__(self, result: int) -> None:
        self._error = _short.edgellama_error().decode(errors="replace") if _check(result) else ""

    def IsOk(self) -> bool:  # noqa: N802
        return not self._error

    def IsError(self) -> bool:  # noqa: N802
        return bool(self._error)

    def ToString(self) -> str:  # noqa: N802
        return self._error or "success"


class _Memory:
    """Memory as numpy takes it. An array of it keeps `owner` alive."""

    def __init__(self, address: int, shape: Sequence[int], dtype: np.dtype, owner: object) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": tuple(shape),
            "typestr": dtype.str,
        }


class TensorBind:
    """A tensor. The data of an input is always in a numpy array, so a view of it stays valid."""

    _free = staticmethod(_long.edgellama_tensor_free)  # found from here when the interpreter ends, too

    def __init__(self, handle: int, output: bool) -> None:
        self.handle = handle
        self._output = output  # of predict: its memory belongs to MindSpore Lite
        self.array: np.ndarray | None = None

    def __del__(self) -> None:
        self._free(self.handle)

    def set_tensor_name(self, name: str) -> None:
        _check(_short.edgellama_tensor_set_name(self.handle, name.encode()))

    def get_tensor_name(self) -> str:
        return _short.edgellama_tensor_name(self.handle).decode()

    def set_data_type(self, dtype: Any) -> None:
        _short.edgellama_tensor_set_type(self.handle, dtype.value)

    def get_data_type(self) -> Any:
        return DataType(_short.edgellama_tensor_type(self.handle))

    def set_format(self, form: Any) -> None:
        _short.edgellama_tensor_set_format(self.handle, form.value)

    def get_format(self) -> Any:
        return Format(_short.edgellama_tensor_format(self.handle))

    def set_shape(self, shape: Sequence[int]) -> None:
        _check(_short.edgellama_tensor_set_shape(self.handle, (c_int64 * len(shape))(*shape), len(shape)))

    def get_shape(self) -> list[int]:
        dims = (c_int64 * _MAX_DIMENSIONS)()
        count = _short.edgellama_tensor_shape(self.handle, dims, _MAX_DIMENSIONS)
        if count > _MAX_DIMENSIONS:
            raise RuntimeError(f"{self._title()} has {count} dimensions; at most {_MAX_DIMENSIONS} can be read")
        return dims[:count]

    def get_element_num(self) -> int:
        return _short.edgellama_tensor_elements(self.handle)

    def get_data_size(self) -> int:
        return _short.edgellama_tensor_bytes(self.handle)

    def is_null(self) -> bool:
        return bool(_short.edgellama_tensor_is_null(self.handle))

    def set_data_from_numpy(self, data: np.ndarray) -> None:
        """Make the tensor use the array's memory, and keep the array. Raises RuntimeError if it does not fit."""
        if self._output:
            raise self._refused("it is an output of predict, whose memory belongs to MindSpore Lite")
        dtype, size = self._layout(self.get_shape())
        if data.dtype != dtype:
            raise self._refused(f"the array is {data.dtype}, the tensor {dtype}")
        if data.nbytes != size:
            raise self._refused(f"the array holds {data.nbytes} bytes, the tensor {size}")
        if not (data.flags.c_contiguous and data.flags.aligned):
            raise self._refused(
                "the array must be C-contiguous and aligned, because the tensor uses its memory "
                "(numpy.ascontiguousarray)"
            )
        self._attach(data)

    def get_data_to_numpy(self) -> np.ndarray:
        """Return the data as an array of the same memory. Raises RuntimeError if there is none."""
        shape = self.get_shape()
        dtype, size = self._layout(shape)
        if self._output:
            if size == 0:
                return np.zeros(shape, dtype)
            address = _short.edgellama_tensor_data(self.handle)
            if not address or self.get_data_size() != size:
                raise RuntimeError(f"{self._title()} holds no data")
            return np.asarray(_Memory(address, shape, dtype, self))
        if self.array is None or not _short.edgellama_tensor_has_data(self.handle):
            self._attach(np.zeros(shape, dtype))
        assert self.array is not None
        return np.asarray(self.array).reshape(-1).view(dtype).reshape(shape)

    def _attach(self, data: np.ndarray) -> None:
        _check(_short.edgellama_tensor_attach(self.handle, data.ctypes.data, data.nbytes))
        self.array = data

    def _layout(self, shape: Sequence[int]) -> tuple[np.dtype, int]:
        """Return numpy's type, and the bytes of a shape. Raises RuntimeError for a type or shape that numpy lacks."""
        kind = self.get_data_type()
        if kind not in _NUMPY:
            raise RuntimeError(f"{self._title()} has type {kind.value}, which numpy does not have")
        if min(shape, default=0) < 0:
            raise RuntimeError(f"{self._title()} has an unknown dimension: call Model.resize first")
        dtype = _NUMPY[kind]
        size = dtype.itemsize
        for dim in shape:
            size *= dim
        return dtype, size

    def _refused(self, why: str) -> RuntimeError:
        return RuntimeError(f"set_data_from_numpy on {self._title()}: {why}")

    def _title(self) -> str:
        return f"tensor '{self.get_tensor_name()}'"


def create_tensor() -> TensorBind:
    """Return a new tensor without a model."""
    return TensorBind(_made(_short.edgellama_tensor_new()), output=False)


class DeviceInfoContextBind:
    """The settings of one kind of device. Model.build_from_file hands them to MindSpore Lite."""

    kind: Any

    def __init__(self) -> None:
        self._device_id: int | None = None
        self._precision_mode = ""
        self._enable_fp16 = False

    def get_device_type(self) -> Any:
        return self.kind

    def set_device_id(self, device_id: int) -> None:
        self._device_id = device_id

    def get_device_id(self) -> int:
        return self._device_id or 0

    def set_precision_mode(self, mode: str) -> None:
        self._precision_mode = mode

    def get_precision_mode(self) -> str:
        return self._precision_mode

    def set_enable_fp16(self, enable: bool) -> None:
        self._enable_fp16 = enable

    def get_enable_fp16(self) -> bool:
        return self._enable_fp16

    def as_c(self) -> _Device:
        number = -1 if self._device_id is None else self._device_id
        return _Device(self.kind.value, number, self._enable_fp16, self._precision_mode.encode())


class CPUDeviceInfoBind(DeviceInfoContextBind):
    """The host's processor."""

    kind = DeviceType.kCPU


class GPUDeviceInfoBind(DeviceInfoContextBind):
    """A GPU."""

    kind = DeviceType.kGPU

    def get_rank_id(self) -> int:
        return 0

    def get_group_size(self) -> int:
        return 1


class AscendDeviceInfoBind(DeviceInfoContextBind):
    """An NPU."""

    kind = DeviceType.kAscend


@dataclass
class ContextBind:
    """The settings of a model. 0 and an empty list leave MindSpore Lite's defaults."""

    thread_num: int = 0
    inter_op_parallel_num: int = 0
    thread_affinity_mode: int = 0
    thread_affinity_core_list: list[int] = field(default_factory=list)
    devices: list[DeviceInfoContextBind] = field(default_factory=list)

    def append_device_info(self, info: DeviceInfoContextBind) -> None:
        self.devices.append(info)

    def clear_device_info(self) -> None:
        self.devices.clear()

    def get_device_list(self) -> list[DeviceInfoContextBind]:
        return list(self.devices)

    def set_thread_num(self, count: int) -> None:
        self.thread_num = count

    def get_thread_num(self) -> int:
        return self.thread_num

    def set_inter_op_parallel_num(self, count: int) -> None:
        self.inter_op_parallel_num = count

    def get_inter_op_parallel_num(self) -> int:
        return self.inter_op_parallel_num

    def set_thread_affinity_mode(self, mode: int) -> None:
        self.thread_affinity_mode = mode

    def get_thread_affinity_mode(self) -> int:
        return self.thread_affinity_mode

    def set_thread_affinity_core_list(self, cores: Sequence[int]) -> None:
        self.thread_affinity_core_list = list(cores)

    def get_thread_affinity_core_list(self) -> list[int]:
        return self.thread_affinity_core_list


def _handles(tensors: Sequence[TensorBind]) -> array[int]:
    return array("Q", [tensor.handle for tensor in tensors])  # faster to make than an array of ctypes


class ModelBind:
    """Builds, resizes and runs a graph. Other threads of Python run while MindSpore Lite works."""

    _free = staticmethod(_long.edgellama_model_free)

    def __init__(self) -> None:
        self._handle = _made(_short.edgellama_model_new())
        self._inputs: list[TensorBind] = []
        self._outputs = 0  # how many predict gives

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._free(self._handle)

    def load_config(self, path: str) -> Status:
        return Status(_long.edgellama_model_load_config(self._handle, path.encode()))

    def build_from_file(self, path: str, kind: Any, context: ContextBind) -> Status:
        cores = context.thread_affinity_core_list
        devices = [device.as_c() for device in context.devices]
        counts = (context.thread_num, context.inter_op_parallel_num, context.thread_affinity_mode)
        result = _long.edgellama_model_build(
            *(self._handle, path.encode(), kind.value, *counts, (c_int * len(cores))(*cores), len(cores)),
            *((_Device * len(devices))(*devices), len(devices)),
        )
        status = Status(result)
        self._outputs = self._count(_short.edgellama_model_outputs)
        return status

    def get_inputs(self) -> list[TensorBind]:
        """Return the same objects each time. Each keeps its array alive as long as the model may read it."""
        if not _check(_short.edgellama_model_inputs_known(self._handle)):
            self._inputs = self._wrapped(_short.edgellama_model_inputs, output=False)
        return list(self._inputs)

    def get_outputs(self) -> list[TensorBind]:
        return self._wrapped(_short.edgellama_model_outputs, output=True)

    def predict(self, inputs: Sequence[TensorBind]) -> list[TensorBind]:
        """Run the graph. Raises RuntimeError if an input has no data, or if the run fails."""
        kept = [tensor.array for tensor in inputs]  # alive during this call, even if another thread sets new arrays
        out = (c_void_p * self._outputs)()
        handles = _handles(inputs)
        address, size = handles.buffer_info()
        count = _check(_long.edgellama_model_predict(self._handle, address, size, out, self._outputs))
        if count > self._outputs:
            raise RuntimeError(f"predict: the model gave {count} outputs; it has {self._outputs}")
        del kept
        return [TensorBind(_made(handle), output=True) for handle in out[:count]]

    def resize(self, inputs: Sequence[TensorBind], dims: Sequence[Sequence[int]]) -> Status:
        flat = [dim for shape in dims for dim in shape]
        ranks = [len(shape) for shape in dims]
        handles = _handles(inputs)
        result = _long.edgellama_model_resize(
            *(self._handle, *handles.buffer_info()),
            *((c_int64 * len(flat))(*flat), (c_size_t * len(ranks))(*ranks)),
        )
        return Status(result)

    def _count(self, read: Any) -> int:
        return _check(read(self._handle, (c_void_p * 0)(), 0))

    def _wrapped(self, read: Any, output: bool) -> list[TensorBind]:
        capacity = self._count(read)
        out = (c_void_p * capacity)()
        count = _check(read(self._handle, out, capacity))
        return [TensorBind(_made(handle), output) for handle in out[:count]]


class ConverterBind:
    """MindSpore Lite's converter is not part of this build."""

    def __init__(self) -> None:
        raise RuntimeError(
            "mindspore_lite.Converter is not part of this build: convert with the converter_lite tool of an official "
            "MindSpore Lite package"
        )
