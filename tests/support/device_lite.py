"""Simulates `mindspore_lite` with device tensors. Written from the public API of release 2.7.

No NPU is involved. The simulation has these properties of the real module:

- The data of a device tensor is separate from the host's until it is copied, and its size is fixed.
- A failed allocation gives a tensor without device memory, and a line in the log.
- A thread has no device until it allocates, reads, resizes or predicts. A copy to the device before that is lost, and
  only the log shows it.
- A model with gears starts in no gear and refuses shapes that are not a gear.

It computes the toy of tiny.py in the device's memory.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgellama.artifact.manifest import Graph, TensorSpec
from support.tiny import InPlaceGraph, Weights


class DataType(enum.Enum):
    """The data types of mindspore_lite that device caches use."""

    INT32 = 34
    FLOAT16 = 42
    FLOAT32 = 43


def log(line: str) -> None:
    """Writes to file descriptor 2 without Python's sys.stderr, as native code does."""
    os.write(2, f"[ERROR] ME(1,7f,python):2025-01-01-00:00:00 {line}\n".encode())


def make_lite(graph: Graph, context: int, room: int = 1 << 30) -> SimpleNamespace:
    """Returns the module for one graph of the toy; `room` is the size of the device's memory in bytes."""
    state = SimpleNamespace(left=room, uploads=0, lost=0, contexts=[])
    thread = threading.local()  # .device: the argument of aclrtSetDevice on this thread

    class Tensor:
        def __init__(self, tensor: Any = None, shape: Any = None, dtype: Any = None, device: str | None = None) -> None:
            self.dtype, self.shape, self.device = dtype, shape, device
            size = int(np.prod(shape)) * np.dtype(dtype.name.lower()).itemsize
            if size > state.left:
                log("Call aclrtMalloc failed, err_code = 207001")
                self._data = None
                return
            state.left -= size
            thread.device = device
            self._data = np.full(shape, 77, dtype.name.lower())  # the earlier contents of the memory

        @property
        def data_size(self) -> int:
            return self._data.nbytes  # type: ignore[union-attr]

        def set_data_from_numpy(self, array: np.ndarray) -> None:
            assert self._data is not None and array.nbytes == self._data.nbytes and array.dtype == self._data.dtype
            if getattr(thread, "device", None) != self.device:
                log(f"copy host data to device data failed, data size: {array.nbytes}")
                state.lost += 1
                return
            self._data[...] = array
            state.uploads += 1

        def get_data_to_numpy(self) -> np.ndarray:
            assert self._data is not None
            thread.device = self.device
            return self._data.copy()

    class Model:
        def build_from_file(
            self, path: str, kind: Any, context: Any, config_path: str = "", config_dict: Any = None
        ) -> None:
            state.contexts.append(context)
            self.gear = 0

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name=spec.name, shape=list(spec.shape)) for spec in graph.inputs]

        def resize(self, inputs: Sequence[Any], shapes: Sequence[Sequence[int]]) -> None:
            wanted = [gear_shape(spec, shapes[0][0]) for spec in graph.inputs]
            if shapes[0][0] not in graph.buckets:
                log(f"Current batch size {shapes[0][0]} is invalid, please check device info of context")
                raise RuntimeError("resize failed! Error is Common error code.")
            assert [list(shape) for shape in shapes] == wanted
            thread.device = f"ascend:{state.contexts[-1].ascend.device_id}"
            self.gear = shapes[0][0]

        def predict(self, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> None:
            if [list(t.shape) for t in inputs] != [gear_shape(spec, self.gear) for spec in graph.inputs]:
                log("Byte size of input 0 != the size expected, given size 4, expected size 16")
                raise RuntimeError("predict failed!")
            assert all(t.device == "ascend:1" for t in [*inputs, *(outputs or ())])
            thread.device = "ascend:1"
            weights = Weights(context)
            names = ("embedding", "position", "q", "k", "v")
            bound = {spec.name: tensor._data for spec, tensor in zip(graph.inputs, inputs, strict=True)}
            bound["tokens"] = bound.pop("tokens_by_step").T
            bound |= {name: np.asarray(getattr(weights, name), np.float32) for name in names}
            toy = InPlaceGraph(SimpleNamespace(inputs=[SimpleNamespace(name=name) for name in bound]))  # type: ignore
            outputs[0]._data[...] = toy.run(list(bound.values()))[0]  # type: ignore[index]

    return SimpleNamespace(
        __version__="2.7.0, simulated",
        Tensor=Tensor,
        Model=Model,
        Context=lambda: SimpleNamespace(ascend=SimpleNamespace()),
        ModelType=SimpleNamespace(MINDIR=0),
        DataType=DataType,
        state=state,
    )


def gear_shape(spec: TensorSpec, gear: int) -> list[int]:
    """Returns the shape of an input in a gear."""
    return [gear, spec.shape[1]] if spec.name == "tokens_by_step" else list(spec.shape)
