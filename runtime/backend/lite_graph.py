"""One graph file in MindSpore Lite: build, switch bucket, run. The only place that touches `mindspore_lite`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import UserError
from .native_exit import native_calls
from .native_log import native_log_on_failure


def available_threads() -> int:
    """Processors this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def import_lite() -> ModuleType:
    """The `mindspore_lite` package. Raises UserError with what to do where it cannot be imported."""
    if "mindspore" in sys.modules and "mindspore_lite" not in sys.modules:
        raise UserError(
            "mindspore is imported in this process, and MindSpore Lite's libraries cannot be loaded beside its own. "
            "Use the runtime in a process without mindspore; numpy arrays stand where its tensors did"
        )
    try:
        return importlib.import_module("mindspore_lite")
    except ImportError as error:
        raise UserError(
            f"MindSpore Lite cannot be imported ({error}). Install it with `python -m edgellama.lite install`"
        ) from error


class LiteGraph:
    """A built model. `inputs` and `outputs` are the tensor names in the model's own order."""

    def __init__(self, path: Path, threads: int, *, show_native_log: bool = False) -> None:
        """Build the model on the host CPU. Raises UserError, with the end of the native log, where that fails."""
        self.path = path
        self._show = show_native_log
        self._native = native_calls(self)
        with native_log_on_failure(
            f"{path}: MindSpore Lite could not load it", show=show_native_log, explain=self._explain
        ):
            self._lite = import_lite()
            self._model = self._lite.Model()
            self._model.build_from_file(str(path), self._lite.ModelType.MINDIR, self._context(threads))
            self._own_inputs = self._model.get_inputs()
        self.inputs: list[str] = [tensor.name for tensor in self._own_inputs]

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """Switch every input to these shapes (in the order of `inputs`)."""
        what = f"{self.path}: MindSpore Lite could not switch it to {self.inputs[0]} {tuple(shapes[0])}"
        with self._native, native_log_on_failure(what, show=self._show, explain=self._explain):
            self._model.resize(self._own_inputs, [list(shape) for shape in shapes])

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Input tensors over these C-contiguous arrays (in the order of `inputs`), without a copy: what is written into
        an array later is what the next run reads, and the other way round for a cache that the graph writes in place.
        The caller keeps the arrays alive. Raises UserError where shape or type are not the graph's."""
        tensors = []
        for name, own, array in zip(self.inputs, self._own_inputs, arrays, strict=True):
            dtype = own.dtype.name.lower()
            if array.dtype.name != dtype:
                raise UserError(f"{self.path}: input {name} is {dtype}, and {array.dtype} is given. Export again")
            tensor = self._lite.Tensor()
            tensor.name = name
            tensor.dtype = own.dtype
            tensor.format = own.format
            tensor.shape = list(array.shape)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        return tensors

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        """Run on tensors from `bind`; the arrays returned are views that the next run overwrites."""
        # not caught as in the other calls: a run that succeeds prints nothing, and this is the hot path
        with self._native:
            return [tensor.get_data_to_numpy() for tensor in self._model.predict(bound)]

    def _context(self, threads: int) -> Any:
        context = self._lite.Context()
        context.target = ["cpu"]
        context.cpu.thread_num = threads
        context.cpu.precision_mode = "enforce_fp32"
        return context

    def _explain(self, log: str) -> str | None:
        """What a native log means, in a sentence; None where that is not known."""
        return None
