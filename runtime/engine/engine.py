"""The step engine: takes tokens, returns the logits of each row's last token; owns the graphs and the KV cache.

Prefill and decode are the same call with different token counts. A call runs as one or more chunks, each in a bucket.
Rows are independent: each has its own start and length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..artifact.manifest import Artifact, Graph, TensorSpec
from ..artifact.sizes import cache_bytes
from ..artifact.step_graph import CACHE_PREFIXES, STEP_INPUTS, shape_at
from ..backend.ascend.cache import DeviceCache, DeviceTensor
from ..backend.cpu_head import CpuHead
from ..backend.cpu_kernels import check_kernel_abi, load_cpu_kernels
from ..backend.library_pages import release_library_pages
from ..backend.lite_graph import LiteGraph, import_lite
from ..backend.native_exit import keep_libraries
from ..backend.resources import available_threads
from ..backend.trial import try_in_child
from ..errors import UserError
from ..mindir.check import check_graphs
from .adapters import Adapters
from .chunks import CPU_PADDING, plan_chunks
from .engine_lock import Cancelled, EngineLock
from .kv_cache import KVCache
from .memory import build_with_reserve, limited_memory
from .prefix_cache import PrefixCache
from .step_inputs import StepInputs
from .weights import begin_weights
from .weights_memory import COPY, WEIGHTS_MEMORY

OPSETS = ("portable", "cpu", "ascend")


class BuiltGraph(Protocol):
    """The interface of a loaded graph; LiteGraph implements it."""

    inputs: list[str]

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        """Switch to these input shapes, in the order of `inputs`."""

    def bind(self, arrays: Sequence[Any]) -> list[Any]:
        """Return input tensors that share the memory of these arrays, in the order of `inputs`."""

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        """Run on tensors from `bind`, and return the outputs, which the next run may overwrite."""


@dataclass
class EngineTimings:
    """Seconds spent so far.

    Attributes:
        load: loading the graphs.
        switch: switching buckets.
        run: running graphs.
        cache: writing returned keys and values, and reordering rows.
    """

    load: float = 0.0
    switch: float = 0.0
    run: float = 0.0
    cache: float = 0.0


@dataclass
class _Bucket:
    """One bucket, ready to run: its graph, its inputs bound to arrays, and its input shapes."""

    graph: Graph
    built: BuiltGraph
    step: StepInputs
    shapes: list[tuple[int, ...]]
    bound: list[Any]


class Engine:
    """Runs an artifact's step graphs, and holds the KV cache.

    Several threads may use one engine, each within `with engine.engine_lock.take():`.

    Attributes:
        batch: rows.
        context: capacity of the cache, in tokens.
        buckets: token counts of the graphs, ascending.
        vocab_size: width of the logits.
        engine_lock: who may use the cache.
        prefixes: which tokens the cache holds, and which adapter each row is computed with.
        adapters: those that are loaded.
        timings: seconds spent so far.
    """

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        *,
        device_id: int | None = None,
        weights_memory: str = COPY,
        show_native_log: bool = False,
        build: Callable[[Path], BuiltGraph] | None = None,
    ) -> None:
        """Load every graph and allocate the KV cache.

        Args:
            artifact: the artifact.
            threads: of the host CPU; None takes all processors that this process may use.
            device_id: the NPU, for an artifact of an Ascend target; None takes the first.
            weights_memory: "copy" copies the weights file to private memory, so that later changes of the file change
                nothing; "map" maps it, so that processes share one copy, and a change of the file changes the answers
                or ends the process. Without a weights file (targets portable and ascend) both are the same.
            show_native_log: print what MindSpore Lite logs while loading.
            build: loads a graph file; None takes MindSpore Lite.

        Raises:
            UserError: this runtime cannot run the artifact.
        """
        manifest = artifact.manifest
        if manifest.opset not in OPSETS:
            raise UserError(
                f"{artifact.path}: op set is {manifest.opset!r}; this runtime runs {', '.join(OPSETS)}. "
                "Export again with TARGET=cpu or TARGET=portable"
            )
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; needed: at least 1")
        if device_id is not None and manifest.opset != "ascend":
            raise UserError(f"device_id is {device_id}, and {artifact.path} runs on the host CPU. Leave device_id out")
        if weights_memory not in WEIGHTS_MEMORY:
            raise UserError(f"weights_memory is {weights_memory!r}; needed: one of {', '.join(WEIGHTS_MEMORY)}")
        self.threads = threads or available_threads()
        self.manifest = manifest
        self.batch = manifest.batch
        self.context = manifest.context
        self.buckets = manifest.buckets
        self.padding = CPU_PADDING if manifest.opset == "cpu" else 1.0
        self.vocab_size = _vocab_size(manifest.graphs[0])
        self.timings = EngineTimings()
        self.cache: KVCache | DeviceCache = KVCache(cache_bytes(manifest))
        self.engine_lock = EngineLock()
        began = time.perf_counter()
        if build is not None:
            self._load(artifact, build, weights_memory)
        elif manifest.opset == "ascend":
            self.cache, build = _on_device(artifact, device_id or 0, show_native_log)
            self._load(artifact, build, weights_memory)
        else:
            if manifest.opset == "cpu":
                check_kernel_abi(manifest)

            def build_on_host(path: Path) -> BuiltGraph:
                if manifest.opset == "cpu":
                    load_cpu_kernels()

                def load() -> LiteGraph:
                    return LiteGraph(path, self.threads, show_native_log=show_native_log)

                return build_with_reserve(load, manifest)

            with limited_memory(artifact, self.threads, weights_memory):
                if not check_graphs(artifact):
                    try_in_child(artifact, 0, str(getattr(import_lite(), "__version__", "unknown")))
                self._load(artifact, build_on_host, weights_memory)
        keep_libraries()
        release_library_pages()
        self.timings.load = time.perf_counter() - began

    def _load(self, artifact: Artifact, build: Callable[[Path], BuiltGraph], weights_memory: str) -> None:
        """Build the graphs while the weights are copied, and bind the inputs of every bucket."""
        manifest = self.manifest
        self.prefixes = PrefixCache(self.cache, self.batch, self.context)
        self.adapters = Adapters(manifest, self.cache, self.prefixes, self.engine_lock)
        self._ready: dict[int, _Bucket] = {}
        self._current: dict[str, int] = {}  # graph file -> the bucket it is switched to
        with begin_weights(artifact, weights_memory) as weights:
            built = [build(artifact.file(graph.file)) for graph in manifest.graphs]
            self._weights = weights()
        self._head: CpuHead | None = None  # made when it is used first
        artifact.require_unchanged(entry.file for entry in manifest.files())
        for graph, graph_built in zip(manifest.graphs, built, strict=True):
            # a converted model (gears) is in no bucket at first
            self._current[graph.file] = 0 if manifest.opset == "ascend" else graph.bucket
            for bucket in graph.buckets:
                self._ready[bucket] = self._prepare(graph, graph_built, bucket)

    def forward(
        self,
        tokens: np.ndarray,
        start: np.ndarray,
        length: np.ndarray,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """Feed `length[b]` tokens of each row b at positions `start[b]` on, with the adapter `prefixes.adapter[b]`.

        The cache holds keys and values of the valid tokens afterwards.

        Args:
            tokens: int [B, n], n >= 1; row b is valid up to length[b].
            start: int [B].
            length: int [B], 0..n; a row of length 0 takes no part.
            cancelled: asked before each chunk.

        Returns:
            Logits float32 [B, V] of each row's last valid token; zeros for a row of length 0. They may be the graph's
            own memory, which the next call overwrites.

        Raises:
            UserError: a row would exceed the cache, or an argument does not fit; nothing has run.
            Cancelled: `cancelled` returned true; the cache holds the chunks before.
        """
        tokens, starts, lengths = self._checked(tokens, start, length)
        chunks = plan_chunks(max(lengths), self.buckets, self.padding)
        self.prefixes.overwrite(starts, lengths)
        if len(chunks) == 1:  # every decode step: kept short, as its code comes from memory after all the weights
            if cancelled():
                raise Cancelled
            logits = self._run(chunks[0][0], tokens, starts, lengths)
            self.prefixes.written(tokens, starts, lengths)
            for row, count in enumerate(lengths):
                if count == 0:
                    logits[row] = 0
            return logits
        logits = np.zeros((self.batch, self.vocab_size), np.float32)
        for bucket, offset, count in _with_offsets(chunks):
            if cancelled():
                raise Cancelled
            step_logits = self._run_chunk(bucket, tokens, starts, lengths, offset, count)
            for row, whole in enumerate(lengths):
                if offset < whole <= offset + count:
                    logits[row] = step_logits[row]
        return logits

    @property
    def head(self) -> CpuHead:
        """The head of every position.

        Raises UserError if the target has none: its graphs return the logits of the last token only.
        """
        if self._head is None and self.manifest.opset == "cpu" and self._weights is not None:
            self._head = CpuHead(self.manifest, self._weights, self.threads)
        if self._head is None:
            raise UserError(
                f"{self.manifest.name} was exported for {self.manifest.target}, whose graphs return the logits of the "
                "last token only; needed: those of other tokens. Export with TARGET=cpu"
            )
        return self._head

    def hidden(
        self,
        tokens: np.ndarray,
        start: np.ndarray,
        length: np.ndarray,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """Feed tokens as `forward` does, and return the hidden states of all of them before the final norm.

        `head.logits` makes logits of them, `head.normalised` what transformers calls last_hidden_state.

        Args, effects and errors are those of `forward`. Raises UserError too if the target has no `head`.

        Returns:
            float32 [B, n, hidden_size]; zeros at and past length[b].
        """
        head = self.head
        tokens, starts, lengths = self._checked(tokens, start, length)
        self.prefixes.overwrite(starts, lengths)
        hidden = np.zeros((*tokens.shape, head.hidden_size), np.float32)
        for bucket, offset, count in _with_offsets(plan_chunks(max(lengths), self.buckets, self.padding)):
            if cancelled():
                raise Cancelled
            with head.requested(self.batch * bucket) as states:
                self._run_chunk(bucket, tokens, starts, lengths, offset, count)
            states = states.reshape(self.batch, bucket, -1)
            for row, whole in enumerate(lengths):
                valid = min(max(whole - offset, 0), count)
                hidden[row, offset : offset + valid] = states[row, :valid]
        return hidden

    def reorder(self, source: np.ndarray, tokens: int) -> None:
        """Replace the first `tokens` cache positions of each row b by those of row source[b]; source: int [B]."""
        began = time.perf_counter()
        self.prefixes.reorder(source, tokens)
        self.timings.cache += time.perf_counter() - began

    def close(self) -> None:
        """Free graphs, weights and cache when the running generation has ended; later generations raise UserError."""
        if not self.engine_lock.closed:
            with self.engine_lock.take():
                self.engine_lock.closed = True
                self._ready.clear()
                self._weights = self._head = None
                self.cache = KVCache()
                self.prefixes = PrefixCache(self.cache, self.batch, self.context)
                self.adapters = Adapters(self.manifest, self.cache, self.prefixes, self.engine_lock)

    def _run_chunk(
        self, bucket: int, tokens: np.ndarray, starts: list[int], lengths: list[int], offset: int, count: int
    ) -> np.ndarray:
        """Run tokens offset .. offset + count - 1 of a call, and record what the cache holds then."""
        here = [min(max(whole - offset, 0), count) for whole in lengths]
        first = [begin + min(offset, whole) for begin, whole in zip(starts, lengths, strict=True)]
        chunk = tokens[:, offset : offset + count]
        logits = self._run(bucket, chunk, first, here)
        self.prefixes.written(chunk, first, here)
        return logits

    def _run(self, bucket: int, tokens: np.ndarray, start: list[int], length: list[int]) -> np.ndarray:
        ready = self._ready[bucket]
        self.adapters.choose()
        ready.step.fill(tokens, start, length)
        began = time.perf_counter()
        if self._current[ready.graph.file] != bucket:
            self._current[ready.graph.file] = 0  # no bucket, in case the switch is interrupted
            ready.built.resize(ready.shapes)
            self._current[ready.graph.file] = bucket
        switched = time.perf_counter()
        outputs = ready.built.run(ready.bound)
        ran = time.perf_counter()
        logits, rows = outputs[0], outputs[1:]
        if self.manifest.cache.policy == "returned":
            self.cache.write(rows, np.array(start), np.array(length))
        self.timings.switch += switched - began
        self.timings.run += ran - switched
        self.timings.cache += time.perf_counter() - ran
        return logits

    def _prepare(self, graph: Graph, built: BuiltGraph, bucket: int) -> _Bucket:
        specs = {spec.name: spec for spec in graph.inputs}
        if sorted(built.inputs) != sorted(specs):
            raise UserError(
                f"{graph.file}: its inputs are {', '.join(sorted(built.inputs)[:4])} ...; "
                f"the manifest lists {', '.join(sorted(specs)[:4])} .... Export again"
            )
        step = StepInputs(graph, bucket, self.context, self.manifest.config.get("sliding_window") or 0)
        arrays = [self._array(specs[name], step, graph) for name in built.inputs]
        shapes = [shape_at(specs[name], graph.bucket, bucket) for name in built.inputs]
        return _Bucket(graph, built, step, shapes, built.bind(arrays))

    def _array(self, spec: TensorSpec, step: StepInputs, graph: Graph) -> np.ndarray | DeviceTensor:
        """Return the array that a graph input is bound to: a per-call input, a cache, or a weight."""
        if spec.name in STEP_INPUTS:
            return step.arrays[spec.name]
        if spec.name.startswith(CACHE_PREFIXES):
            return self.cache.bind(spec)
        if self._weights is not None:
            return self._weights.array(spec.name)
        raise UserError(f"{graph.file}: this runtime has nothing to give its input {spec.name!r}. Update the runtime")

    def _checked(
        self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray
    ) -> tuple[np.ndarray, list[int], list[int]]:
        tokens = np.asarray(tokens)
        start, length = np.asarray(start, np.int64), np.asarray(length, np.int64)
        if tokens.ndim != 2 or tokens.shape[0] != self.batch or tokens.shape[1] < 1:
            raise UserError(f"tokens have shape {tokens.shape}; this artifact takes ({self.batch}, n >= 1)")
        if start.shape != (self.batch,) or length.shape != (self.batch,):
            raise UserError(f"start and length have shapes {start.shape} and {length.shape}; needed: ({self.batch},)")
        # For a few numbers Python's own minimum is cheaper than numpy's, above all in a decode step.
        starts, lengths = start.tolist(), length.tolist()
        if min(lengths) < 0 or max(lengths) > tokens.shape[1] or min(starts) < 0:
            raise UserError(f"start {start}, length {length}: needed start >= 0 and length in 0..{tokens.shape[1]}")
        for row, count in enumerate(lengths):
            if starts[row] + count > self.context:
                raise UserError(f"{starts[row] + count:,} tokens; this artifact holds {self.context:,} (context)")
            for token in tokens[row, :count].tolist():
                if not 0 <= token < self.vocab_size:
                    raise UserError(f"token id {token}; this artifact's ids are 0..{self.vocab_size - 1} (vocab_size)")
        return tokens, starts, lengths


def _with_offsets(chunks: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield (bucket, tokens of the call before it, tokens in it) of each chunk."""
    offset = 0
    for bucket, count in chunks:
        yield bucket, offset, count
        offset += count


def _on_device(
    artifact: Artifact, device_id: int, show_native_log: bool
) -> tuple[DeviceCache, Callable[[Path], BuiltGraph]]:
    """Return the cache on an NPU, and the function that loads a graph there."""
    from ..backend.ascend.graph import AscendGraph, open_device

    _, cache = open_device(artifact, device_id)
    graphs = {artifact.file(graph.file): graph for graph in artifact.manifest.graphs}
    return cache, lambda path: AscendGraph(artifact, graphs[path], device_id, show_native_log=show_native_log)


def _vocab_size(graph: Graph) -> int:
    return graph.outputs[0].shape[-1]
