"""A converted graph on an NPU: a LiteGraph with the context of the device and every tensor in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...artifact.manifest import Artifact, Graph
from ...errors import UserError
from ...mindir.check import check_graphs
from ..lite_graph import LiteGraph, import_lite
from ..trial import try_in_child
from .cache import DeviceCache, DeviceTensor
from .cann_log import explain
from .device import Device, find
from .requirements import check_converted, check_device, check_lite


class AscendGraph(LiteGraph):
    """A graph whose buckets are gears of the compiled model; `resize` switches between them, as on the host."""

    def __init__(self, artifact: Artifact, graph: Graph, device: int, *, show_native_log: bool = False) -> None:
        self.graph, self.device, self.converted = graph, device, artifact.manifest.converted
        self._outputs: list[DeviceTensor] = []
        super().__init__(artifact.file(graph.file), threads=1, show_native_log=show_native_log)

    def bind(self, arrays: Sequence[np.ndarray | DeviceTensor]) -> list[Any]:
        """Return one pair for each input, in the order of `inputs`.

        A pair is the tensor on the device, and the host array that is copied to it before every run (None for a cache).
        The small inputs of a step are device tensors too: on boards where host and NPU share memory, MindSpore Lite
        would pass the address of a host array to the NPU unchanged.
        """
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
        """Run on what `bind` returned and return copies of the outputs. Raises UserError, naming graph and gear."""
        with self._native:
            for tensor, array in bound:
                if array is not None:
                    tensor.write(array)  # small tensors: on a new thread the first write also reads
            try:
                self._model.predict([tensor.tensor for tensor, _ in bound], [out.tensor for out in self._outputs])
            except RuntimeError as error:
                gear = bound[0][0].shape
                raise UserError(
                    f"{self.path}: running it on device {self.device} failed in the gear with {self.inputs[0]} {gear}: "
                    f"{error}. CANN's messages are above; `edgellama board-check` shows what works on this device"
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
    """Check what can be checked before loading. Return the device, and the artifact's cache on it.

    Raises UserError: it says what was found, what is needed, and the command that helps.
    """
    if device_id < 0:
        raise UserError(f"device_id is {device_id}; needed: 0 or more")
    check_converted(artifact)
    device = find(device_id)
    check_device(artifact, device)
    lite = import_lite()
    check_lite(lite)
    check_graphs(artifact)
    try_in_child(artifact, device_id, str(getattr(lite, "__version__", "unknown")))
    return device, DeviceCache(artifact.manifest.cache, lite, device_id)
