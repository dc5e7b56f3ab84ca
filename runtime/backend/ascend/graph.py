"""A converted graph on an NPU: LiteGraph with the device's context, and every tensor in the device's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.artifact.manifest import Artifact, Graph
from runtime.backend.ascend.cache import DeviceCache, DeviceTensor
from runtime.backend.ascend.cann_log import explain
from runtime.backend.ascend.device import Device, find
from runtime.backend.ascend.requirements import check_converted, check_device, check_lite
from runtime.backend.lite_graph import LiteGraph, import_lite
from runtime.errors import UserError


class AscendGraph(LiteGraph):
    """A graph whose buckets are gears of the compiled model; `resize` switches them as it does on the host."""

    def __init__(self, artifact: Artifact, graph: Graph, device: int, *, show_native_log: bool = False) -> None:
        self.graph, self.device, self.converted = graph, device, artifact.manifest.converted
        self._outputs: list[DeviceTensor] = []
        super().__init__(artifact.file(graph.file), threads=1, show_native_log=show_native_log)

    def bind(self, arrays: Sequence[np.ndarray | DeviceTensor]) -> list[Any]:
        """(tensor on the device, array that is copied to it before every run or None), in the order of `inputs`.

        Also the small inputs of a step are device tensors: on boards where host and NPU share memory MindSpore Lite
        would hand the NPU a host array's address as it is."""
        if not self._outputs:
            self._outputs = [DeviceTensor(self._lite, out.shape, out.dtype, self.device) for out in self.graph.outputs]
        bound: list[tuple[DeviceTensor, np.ndarray | None]] = []
        for array in arrays:
            if isinstance(array, DeviceTensor):
                bound.append((array, None))
            else:
                bound.append((DeviceTensor(self._lite, array.shape, array.dtype.name, self.device), array))
        return bound

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        """Run on what `bind` gave; copies of the outputs. Raises UserError with graph and gear where it fails."""
        with self._native:
            for tensor, array in bound:
                if array is not None:
                    tensor.write(array)  # the smallest tensors: on a new thread the first is read before
            try:
                self._model.predict([tensor.tensor for tensor, _ in bound], [out.tensor for out in self._outputs])
            except RuntimeError as error:
                gear = bound[0][0].shape
                raise UserError(
                    f"{self.path}: running it on device {self.device} failed in the gear with {self.inputs[0]} {gear}: "
                    f"{error}. What CANN said of it stands above; `make board-check` tells what works on this device"
                ) from error
            return [out.read() for out in self._outputs]

    def _context(self, threads: int) -> Any:
        context = self._lite.Context()
        context.target = ["ascend"]
        context.ascend.device_id = self.device
        context.ascend.precision_mode = "enforce_origin"
        return context

    def _explain(self, log: str) -> str | None:
        found = explain(log)
        if found is None:
            return None
        made = self.converted
        by = f" (converted for {made.soc} by CANN {made.cann} and MindSpore Lite {made.mindspore_lite})" if made else ""
        return f"{found}{by}"


def open_device(artifact: Artifact, device_id: int) -> tuple[Device, DeviceCache]:
    """Check everything that can be checked before anything is loaded; the device, and the artifact's cache on it.

    Raises UserError: what was found, what is needed, and the command that mends it.
    """
    if device_id < 0:
        raise UserError(f"device_id is {device_id}; needed: 0 or more")
    check_converted(artifact)
    device = find(device_id)
    check_device(artifact, device)
    lite = import_lite()
    check_lite(lite)
    return device, DeviceCache(artifact.manifest.cache, lite, device_id)
