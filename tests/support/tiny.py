"""A toy decoder in numpy, implemented twice: as a step graph for the runtime, and as one pass over a text.

The step graph replaces MindSpore Lite. The pass over a text has no chunks, masks or cache, so comparing the two tests
the engine's chunks, masks, positions and cache writes. The step graph has the interface of the portable op set
(NumpyGraph) or of the cpu op set (InPlaceGraph). The network is attention with grouped-query heads and learned
positions, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgellama.artifact.manifest import (
    Artifact,
    CacheSpec,
    Graph,
    Manifest,
    TensorSpec,
    file_entry,
    write_manifest,
)
from edgellama.artifact.source import Source
from support.distributions import softmax

LAYERS, HEADS, GROUPS, DIM, VOCAB = 2, 4, 2, 4, 50
WIDTH = HEADS * DIM


class Weights:
    """Seeded random weights, float64, so large that every earlier token influences the next one.

    Each value is one that float32 has, because the cpu op set stores float32: the scores of attention are so large that
    float32's rounding of a weight, a key or a sum changes some logits by more than the tests tolerate.
    """

    def __init__(self, context: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
            return (rng.normal(size=shape) * scale).astype(np.float32).astype(np.float64)

        self.embedding = normal(VOCAB, WIDTH)
        self.position = normal(context, WIDTH)
        self.q = normal(LAYERS, WIDTH, HEADS * DIM, scale=0.5)
        self.k, self.v = (normal(LAYERS, WIDTH, GROUPS * DIM, scale=0.5) for _ in range(2))


def whole_text_logits(weights: Weights, tokens: Sequence[int]) -> np.ndarray:
    """Returns logits [n, V] of one text, computed token by token and head by head, without cache or mask.

    Keys and values are rounded to float32, as they are in a cache.
    """
    h = weights.embedding[list(tokens)] + weights.position[: len(tokens)]  # [n, E]
    for layer in range(LAYERS):
        q = (h @ weights.q[layer]).reshape(-1, HEADS, DIM)
        k, v = ((h @ w[layer]).astype(np.float32).reshape(-1, GROUPS, DIM) for w in (weights.k, weights.v))
        out = np.zeros_like(q)
        for n in range(len(h)):
            for head in range(HEADS):
                group = head // (HEADS // GROUPS)
                out[n, head] = softmax(k[: n + 1, group] @ q[n, head]) @ v[: n + 1, group]
        h = h + out.reshape(-1, WIDTH)
    return h @ weights.embedding.T


class NumpyGraph:
    """The step graph of the toy with the inputs of the portable op set; refuses shapes that `resize` did not set."""

    def __init__(self, weights: Weights, graph: Graph) -> None:
        self.weights = weights
        self.inputs = [spec.name for spec in graph.inputs]
        self.shapes: list[tuple[int, ...]] = [spec.shape for spec in graph.inputs]
        self.switches = 0

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self.switches += 1

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        assert all(array.flags.c_contiguous for array in arrays)
        return list(arrays)

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        assert [array.shape for array in bound] == self.shapes
        x = dict(zip(self.inputs, bound, strict=True))
        rows, size = x["tokens"].shape
        h = self.weights.embedding[x["tokens"]] + self.weights.position[x["positions"]]  # [B, S, E]
        new = []
        for layer in range(LAYERS):
            q = (h @ self.weights.q[layer]).reshape(rows, size, GROUPS, -1, DIM).transpose(0, 2, 3, 1, 4)
            q = q.reshape(rows, GROUPS, -1, DIM)  # [B, G, R*S, D], row order r*S + s
            k, v = (
                (h @ w[layer]).astype(np.float32).reshape(rows, size, GROUPS, DIM).transpose(0, 2, 1, 3)
                for w in (self.weights.k, self.weights.v)
            )
            past = q @ x[f"k_cache.{layer}"].swapaxes(-1, -2) + x["cache_mask"]
            own = q @ k.swapaxes(-1, -2) + x["self_mask"]
            p = softmax(np.concatenate([past, own], axis=-1))
            capacity = past.shape[-1]
            out = p[..., :capacity] @ x[f"v_cache.{layer}"] + p[..., capacity:] @ v
            out = out.reshape(rows, HEADS, size, DIM).transpose(0, 2, 1, 3).reshape(rows, size, WIDTH)
            h = h + out
            new += [k, v]
        last = h.reshape(-1, WIDTH)[x["last"].reshape(-1)]
        return [(last @ self.weights.embedding.T).astype(np.float32), *new]


class InPlaceGraph:
    """The toy with the interface of the cpu op set: one fixed bucket, weights as inputs, caches written in place.

    Like NumpyGraph it computes in float64, and rounds only keys, values and logits.
    """

    def __init__(self, graph: Graph) -> None:
        self.inputs = [spec.name for spec in graph.inputs]

    def resize(self, shapes: Sequence[Sequence[int]]) -> None:
        raise AssertionError("a graph with custom kernels cannot be resized")

    def bind(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        return list(arrays)

    def run(self, bound: list[Any]) -> list[np.ndarray]:
        x = dict(zip(self.inputs, bound, strict=True))
        logits = np.full((len(x["start"]), VOCAB), np.nan, np.float32)
        for row, (start, length) in enumerate(zip(x["start"], x["length"], strict=True)):
            if length == 0:
                continue
            end = start + length
            h = x["embedding"][x["tokens"][row, :length]].astype(np.float64) + x["position"][start:end]
            for layer in range(LAYERS):
                k, v = (x[f"{name}_cache.{layer}"][row] for name in "kv")  # [G, C, D]
                for cache, name in ((k, "k"), (v, "v")):
                    cache[:, start:end] = (h @ x[name][layer]).reshape(length, GROUPS, DIM).swapaxes(0, 1)
                q = (h @ x["q"][layer]).reshape(length, GROUPS, -1, DIM).transpose(1, 2, 0, 3)  # [G, R, S, D]
                scores = q @ k[:, None, :end].swapaxes(-1, -2)
                seen = np.arange(end) <= start + np.arange(length)[:, None]
                out = softmax(np.where(seen, scores, -np.inf)) @ v[:, None, :end]
                h = h + out.transpose(2, 0, 1, 3).reshape(length, WIDTH)
            logits[row] = h[-1] @ x["embedding"].T
        return [logits]


def in_place_manifest(folder: Path, batch: int, context: int = 64, buckets: tuple[int, ...] = (1, 4, 16)) -> Manifest:
    """Writes the toy as an artifact of the cpu op set: a graph file for each bucket, and weights.safetensors."""
    weights = Weights(context)
    arrays = {name: np.asarray(getattr(weights, name), np.float32) for name in ("embedding", "position", "q", "k", "v")}
    made = manifest(folder, batch, context, buckets)
    save_file(arrays, folder / "weights.safetensors")
    graphs = []
    for bucket in buckets:
        name = f"step{bucket}.mindir"
        (folder / name).write_bytes(b"toy")
        specs = [("tokens", (batch, bucket)), ("start", (batch,)), ("length", (batch,))]
        graphs.append(
            Graph(
                **dataclasses.asdict(file_entry(folder, name)),
                bucket=bucket,
                buckets=(bucket,),
                inputs=(
                    *(TensorSpec(name, "int32", shape) for name, shape in specs),
                    *(spec for spec in made.graphs[0].inputs if "_cache." in spec.name),
                    *(TensorSpec(name, "float32", array.shape) for name, array in arrays.items()),
                ),
                outputs=made.graphs[0].outputs[:1],
            )
        )
    cache = dataclasses.replace(made.cache, policy="in_place")
    made = dataclasses.replace(
        made, graphs=tuple(graphs), weights=file_entry(folder, "weights.safetensors"), cache=cache
    )
    write_manifest(folder, made)
    return made


def manifest(
    folder: Path, batch: int = 1, context: int = 64, buckets: tuple[int, ...] = (1, 4, 16), **changes: Any
) -> Manifest:
    """Writes an artifact folder of the toy, with a dummy graph file, and returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.mindir").write_bytes(b"toy")
    size = buckets[-1]
    cache = (batch, GROUPS, context, DIM)
    kv = [TensorSpec(f"{x}_cache.{layer}", "float32", cache) for layer in range(LAYERS) for x in "kv"]
    new = [
        TensorSpec(f"{x}_new.{layer}", "float32", (batch, GROUPS, size, DIM)) for layer in range(LAYERS) for x in "kv"
    ]
    graph = Graph(
        **dataclasses.asdict(file_entry(folder, "step.mindir")),
        bucket=size,
        buckets=buckets,
        inputs=(
            TensorSpec("tokens", "int32", (batch, size)),
            TensorSpec("positions", "int32", (batch, size)),
            TensorSpec("last", "int32", (batch, 1)),
            TensorSpec("cache_mask", "float32", (batch, 1, 1, context)),
            TensorSpec("self_mask", "float32", (batch, 1, HEADS // GROUPS * size, size)),
            *kv,
        ),
        outputs=(TensorSpec("logits", "float32", (batch, VOCAB)), *new),
    )
    fields: dict[str, Any] = {
        "name": "toy",
        "source": Source("toy", "tests", None, None),
        "config": {"model_type": "llama", "vocab_size": VOCAB, "max_position_embeddings": 4 * context},
        "target": "portable",
        "opset": "portable",
        "weights_format": "fp32",
        "batch": batch,
        "context": context,
        "buckets": buckets,
        "graphs": (graph,),
        "weights": None,
        "cache": CacheSpec("float32", "returned", LAYERS, cache),
        "eos_token_id": (2,),
        "bos_token_id": 1,
        "pad_token_id": None,
        "tools": {},
        "kernel_abi": None,
        "parity": None,
    }
    made = Manifest(**{**fields, **changes})
    write_manifest(folder, made)
    return made


def artifact(folder: Path, **changes: Any) -> Artifact:
    """Returns the toy as an opened artifact; `changes` are arguments of `manifest`."""
    manifest(folder, **changes)
    return Artifact.open(folder)


def numpy_graphs(opened: Artifact) -> Callable[..., NumpyGraph]:
    """Returns the toy's replacement for LiteGraph, which is also the `build` argument of Engine."""
    weights = Weights(opened.manifest.context)
    return lambda *_, **__: NumpyGraph(weights, opened.manifest.graphs[0])
