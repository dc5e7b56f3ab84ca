"""One graph file in MindSpore Lite: build it, switch its bucket, run it. Only this module imports mindspore_lite."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from ..errors import UserError
from .after_fork import Refusal, keep_for_ever, tell_when_forked
from .native_exit import native_calls
from .native_log import native_log_on_failure
from .resources import available_address_space

CONFLICT = (
    "MindSpore and MindSpore Lite have libraries of the same names, and one process cannot load both: {loaded} is "
    "loaded already. Use the runtime in a process without mindspore, with numpy arrays in place of its tensors"
)
NO_MEMORY = (
    "failed to map segment",
    "cannot allocate memory",
    "cannot create shared object",
    "bad_alloc",
    "resource temporarily unavailable",
)


class ConflictError(UserError, ImportError):
    """MindSpore and MindSpore Lite were both imported."""


class _RefuseMindSpore:
    """Makes `import mindspore` a clear error, where native code would find an undefined symbol.

    `importlib.util.find_spec("mindspore")` still finds the package and its files: libraries only look with it. It is a
    finder and a loader without the bases in importlib.abc, which import much else at each start.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path) if name == "mindspore" else None
        return None if found is None else ModuleSpec(name, cast(Any, self), origin=found.origin)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ConflictError(CONFLICT.format(loaded="MindSpore Lite"), name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        raise ConflictError(CONFLICT.format(loaded="MindSpore Lite"), name="mindspore")


def import_lite() -> ModuleType:
    """Return the `mindspore_lite` package.

    After it, `import mindspore` raises ConflictError.

    Raises:
        UserError: it cannot be imported; the message says what to do.
    """
    if sys.modules.get("mindspore") is not None and "mindspore_lite" not in sys.modules:
        raise ConflictError(CONFLICT.format(loaded="mindspore"))
    try:
        lite = importlib.import_module("mindspore_lite")
    except (ImportError, OSError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY):
            raise UserError(
                f"MindSpore Lite cannot be loaded: this process gets no more memory ({error}). Raise its limit "
                "(`ulimit -v`, or the memory of the container)"
            ) from error
        raise UserError(
            f"MindSpore Lite cannot be imported ({error}). Install it with `python -m edgellama.lite install`"
        ) from error
    if not any(isinstance(finder, _RefuseMindSpore) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RefuseMindSpore())
    return lite


class LiteGraph:
    """A built model.

    Attributes:
        inputs: names of the input tensors, in the model's order.
    """

    def __init__(self, path: Path, threads: int, *, show_native_log: bool = False) -> None:
        """Build the model on the host CPU.

        Args:
            path: a graph file that `mindir.check.check_graphs` accepts; MindSpore Lite's parser trusts it.
            threads: CPU threads.
            show_native_log: print what MindSpore Lite logs.

        Raises:
            UserError: MindSpore Lite could not load it; the message ends with the last lines of its log.
        """
        self.path = path
        self._show = show_native_log
        self._native: threading.Lock | Refusal = native_calls(self)
        self._process = os.getpid()
        tell_when_forked(self)
        with native_log_on_failure(
            f"{path}: MindSpore Lite could not load it", show=show_native_log, explain=self._explain
        ):
            self._lite = import_lite()
            self._model = self._lite.Model()
            self._model.build_from_file(str(path), self._lite.ModelType.MINDIR, self._context(threads))
            self._own_inputs = self._model.get_inputs()
        self.inputs: list[str] = [tensor.name for tensor in self._own_inputs]

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """Switch the model to these input shapes, in the order of `inputs`.

        Raises:
            UserError: MindSpore Lite could not switch.
        """
        what = f"{self.path}: MindSpore Lite could not switch it to {self.inputs[0]} {tuple(shapes[0])}"
        with self._native, native_log_on_failure(what, show=self._show, explain=self._explain):
            self._model.resize(self._own_inputs, [list(shape) for shape in shapes])

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Return input tensors that share the memory of these arrays.

        A run reads what the arrays hold then, and a graph that writes its cache in place writes into them.

        Args:
            arrays: C-contiguous, in the order of `inputs`; the caller keeps them alive.

        Raises:
            UserError: an array has another type than the graph's input.
        """
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
        """Run on tensors from `bind`, and return the outputs: views that the next run overwrites."""
        # The native log is not captured here: a successful run prints nothing, and this is the hot path.
        with self._native:
            return [tensor.get_data_to_numpy() for tensor in self._model.predict(bound)]

    def forked(self) -> None:
        """Refuse to run in a forked child. The native objects stay: their destructors wait for threads."""
        keep_for_ever(self)
        self._native = Refusal(self._process)

    def _context(self, threads: int) -> Any:
        context = self._lite.Context()
        context.target = ["cpu"]
        context.cpu.thread_num = threads
        context.cpu.precision_mode = "enforce_fp32"
        return context

    def _explain(self, log: str) -> str | None:
        """Return the meaning of a native log in a sentence; None if it is not known."""
        limit = available_address_space()
        if limit is None or not any(text in log.lower() for text in NO_MEMORY):
            return None
        return (
            f"no more memory or threads; {limit.available / 1e6:,.0f} MB of address space are left ({limit.source}). "
            "Raise the limit"
        )
