"""The KV cache in a device's memory: tensors of full capacity, made once, written by the graphs where they lie."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.artifact.manifest import CacheSpec, TensorSpec
from runtime.errors import UserError


class _Thread(threading.local):
    """The device that the calling thread's copies go to, as far as this module set it. Each thread has its own in CANN:
    so it is kept here by thread, not by engine."""

    device: int | None = None


_thread = _Thread()


class DeviceTensor:
    """A MindSpore Lite tensor whose data is on a device. Its shape never changes, it has no views, and every look at
    it copies: that is what Tensor(device=...) offers.

    MindSpore Lite 2.7 sets the thread's device where it allocates and where it copies from the device, not where it
    copies to it (its acl_allocator.cc). A copy to the device on a thread that has none fails, and Python is not told.
    """

    def __init__(self, lite: Any, shape: Sequence[int], dtype: str, device: int) -> None:
        """Allocate it. Raises UserError where the device has no room."""
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.device = device
        kind = getattr(lite.DataType, dtype.upper())
        self.tensor = lite.Tensor(shape=list(shape), dtype=kind, device=f"ascend:{device}")
        try:
            size = self.tensor.data_size
        except AttributeError:  # MindSpore Lite logs a failed allocation and hands out a tensor without one
            size = 0
        if size != self.nbytes:
            raise UserError(
                f"device {device} has no room for {self.nbytes:,} bytes (a tensor of shape {self.shape}). Free some "
                "(`npu-smi info` lists processes), or export with a smaller CONTEXT or BATCH"
            )
        _thread.device = device

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def write(self, array: np.ndarray) -> None:
        """Copy an array of the same shape and dtype to the device. Raises UserError where it cannot be reached."""
        if _thread.device != self.device:
            self.read()
        self.tensor.set_data_from_numpy(array)

    def read(self) -> np.ndarray:
        """A copy of what is on the device. Raises UserError where the copy failed."""
        array = self.tensor.get_data_to_numpy()
        if array.shape != self.shape:  # MindSpore Lite logs a failed copy and hands out an empty array
            raise UserError(f"copying {self.nbytes:,} bytes from the device failed. See its health with `npu-smi info`")
        _thread.device = self.device
        return array


class DeviceCache:
    """Every cache tensor of an artifact, by the name of the graph input it is bound to; zero at first.

    worth_copying: from how many tokens on copying them from one row to another costs less than computing them; many,
    since every copy takes whole tensors to the host and back. An estimate: no board has been measured.
    """

    worth_copying = 256

    def __init__(self, spec: CacheSpec, lite: Any, device: int) -> None:
        self.spec = spec
        self.arrays: dict[str, DeviceTensor] = {}
        self._lite, self._device = lite, device
        self._zeros: dict[tuple[tuple[int, ...], str], np.ndarray] = {}

    def bind(self, wanted: TensorSpec) -> DeviceTensor:
        """The tensor for this graph input, made when first asked for."""
        if wanted.name not in self.arrays:
            tensor = DeviceTensor(self._lite, wanted.shape, wanted.dtype, self._device)
            key = (wanted.shape, wanted.dtype)  # one array of zeros serves all caches: they have one shape
            tensor.write(self._zeros.setdefault(key, np.zeros(*key)))
            self.arrays[wanted.name] = tensor
        return self.arrays[wanted.name]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.arrays.values())

    def write(self, rows: Sequence[np.ndarray], start: np.ndarray, length: np.ndarray) -> None:
        """Nothing: these graphs write their caches themselves (policy "in_place")."""

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Row b becomes what row source[b] was, in its first `tokens` positions. source: [B] row numbers.

        Every cache goes to the host and back, as MindSpore Lite has no copy within a device: beam search is slow here.
        """
        moved = np.flatnonzero(source != np.arange(len(source)))
        if moved.size:
            for tensor in self.arrays.values():
                array = tensor.read().copy()
                array[moved, :, :tokens] = array[source[moved], :, :tokens]
                tensor.write(array)

    def held(self, row: int, tokens: int) -> dict[str, np.ndarray]:
        """Copies of the first `tokens` positions of `row`, by the tensors' names."""
        return {name: tensor.read()[row, :, :tokens].copy() for name, tensor in self.arrays.items()}

    def fill(self, row: int, tokens: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Give `row` the first `tokens` positions that `held` gave."""
        for name, tensor in self.arrays.items():
            array = tensor.read().copy()
            array[row, :, :tokens] = arrays[name]
            tensor.write(array)
