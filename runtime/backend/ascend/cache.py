"""The KV cache in a device's memory: tensors of full capacity, allocated once, which the graphs write in place."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...artifact.manifest import CacheSpec, TensorSpec
from ...errors import UserError


class _Thread(threading.local):
    """The device that the calling thread's copies go to, as far as this module set it.

    CANN keeps the current device per thread, not per engine.
    """

    device: int | None = None


_thread = _Thread()


class DeviceTensor:
    """A MindSpore Lite tensor whose data is on a device.

    Tensor(device=...) offers no more than this: the shape never changes, there are no views, and every read copies.

    MindSpore Lite 2.7 sets the thread's device when it allocates and when it copies from the device, but not when it
    copies to the device (its acl_allocator.cc). A copy to the device fails on a thread without one, and Python gets no
    error.
    """

    def __init__(self, lite: Any, shape: Sequence[int], dtype: str, device: int) -> None:
        """Allocate the tensor. Raises UserError if the device has no room for it."""
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.device = device
        kind = getattr(lite.DataType, dtype.upper())
        self.tensor = lite.Tensor(shape=list(shape), dtype=kind, device=f"ascend:{device}")
        try:
            size = self.tensor.data_size
        except AttributeError:  # after a failed allocation MindSpore Lite logs it and returns an unusable tensor
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
        """Copy an array of the same shape and dtype to the device. Raises UserError if the device does not respond."""
        if _thread.device != self.device:
            self.read()
        self.tensor.set_data_from_numpy(array)

    def read(self) -> np.ndarray:
        """Return a copy of the data on the device. Raises UserError if the copy fails."""
        array = self.tensor.get_data_to_numpy()
        if array.shape != self.shape:  # after a failed copy MindSpore Lite logs it and returns an empty array
            raise UserError(
                f"copying {self.nbytes:,} bytes from the device failed. Check its health with `npu-smi info`"
            )
        _thread.device = self.device
        return array


class DeviceCache:
    """Every cache tensor of an artifact, by the name of the graph input that it is bound to. They start as zeros.

    worth_copying: the number of tokens from which copying them between rows costs less than computing them. It is
    large, because every copy moves whole tensors to the host and back. It is an estimate: no board was measured.
    """

    worth_copying = 256

    def __init__(self, spec: CacheSpec, lite: Any, device: int) -> None:
        self.spec = spec
        self.arrays: dict[str, DeviceTensor] = {}
        self._lite, self._device = lite, device
        self._zeros: dict[tuple[tuple[int, ...], str], np.ndarray] = {}

    def bind(self, wanted: TensorSpec) -> DeviceTensor:
        """Return the tensor for this graph input; the first call allocates it."""
        if wanted.name not in self.arrays:
            tensor = DeviceTensor(self._lite, wanted.shape, wanted.dtype, self._device)
            key = (wanted.shape, wanted.dtype)  # one array of zeros serves all caches, which have the same shape
            tensor.write(self._zeros.setdefault(key, np.zeros(*key)))
            self.arrays[wanted.name] = tensor
        return self.arrays[wanted.name]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that were allocated so far."""
        return sum(tensor.nbytes for tensor in self.arrays.values())

    def write(self, rows: Sequence[np.ndarray], start: np.ndarray, length: np.ndarray) -> None:
        """Do nothing: these graphs write their caches themselves (policy "in_place")."""

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Replace the first `tokens` positions of each row b by those of row source[b]. source: int [B], row numbers.

        Every cache moves to the host and back, because MindSpore Lite cannot copy within a device. So beam search is
        slow here.
        """
        moved = np.flatnonzero(source != np.arange(len(source)))
        if moved.size:
            for tensor in self.arrays.values():
                array = tensor.read().copy()
                array[moved, :, :tokens] = array[source[moved], :, :tokens]
                tensor.write(array)

    def held(self, row: int, tokens: int) -> dict[str, np.ndarray]:
        """Return copies of the first `tokens` positions of `row`, each [G, tokens, D], by the names of the tensors."""
        return {name: tensor.read()[row, :, :tokens].copy() for name, tensor in self.arrays.items()}

    def fill(self, row: int, tokens: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write into `row` the first `tokens` positions that `held` returned."""
        for name, tensor in self.arrays.items():
            array = tensor.read().copy()
            array[row, :, :tokens] = arrays[name]
            tensor.write(array)

    def write_blocks(self, row: int, start: int, blocks: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Write blocks of tokens one after the other into `row` from position `start` on, each as `held` returns it."""
        for name, tensor in self.arrays.items():
            array = tensor.read().copy()
            first = start
            for block in blocks:
                count = block[name].shape[1]
                array[row, :, first : first + count] = block[name]
                first += count
            tensor.write(array)
