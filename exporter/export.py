"""One way to export: checkpoint -> graphs, weights, tokenizer and manifest, proved, in one folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import numpy as np

from exporter import verify
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.config import LlamaConfig
from exporter.opsets import Input, Shape
from exporter.progress import Progress
from exporter.source import Source, resolve
from runtime import artifact
from runtime.artifact import CacheSpec, Graph, Manifest, TensorSpec
from runtime.errors import UserError

TARGETS = ("portable",)
BUCKETS = (32, 128, 512)
CONTEXT = 2048
TOOLS = ("mindspore", "transformers", "safetensors", "gguf", "numpy", "onnx")


@dataclass(frozen=True)
class Options:
    """What `make export` takes. context, buckets and out: None means the default that fits the model."""

    model: str
    target: str = "portable"
    weights: str | None = None
    context: int | None = None
    buckets: tuple[int, ...] | None = None
    batch: int = 1
    out: Path | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(f"TARGET {self.target!r} is unknown; choose from {', '.join(TARGETS)}")
        if self.batch < 1:
            raise UserError(f"BATCH is {self.batch}; an artifact has at least 1 row")


def export(options: Options, progress: Progress) -> Path:
    """Write the artifact and return its folder. Nothing is left behind where it fails; UserError says why."""
    source = resolve(options.model)
    checkpoint = open_checkpoint(source.path)
    ops = import_module(f"exporter.opsets.{options.target}")
    weights = _weights(options, ops)
    shape, buckets = _shape(options, checkpoint.config)
    out = options.out or Path("artifacts") / f"{source.name}-{options.target}-{weights}"
    _check_disk(out, checkpoint)

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    (partial / "graphs").mkdir(parents=True)
    try:
        graph = _write_graph(checkpoint, shape, buckets, ops, partial, progress)
        for name, data in checkpoint.tokenizer_files().items():
            (partial / name).write_bytes(data)
        config = checkpoint.config.to_dict()
        (partial / "config.json").write_text(verify.json_text(config), encoding="utf-8")
        manifest = _manifest(options, weights, source, checkpoint, shape, buckets, ops, graph)
        if options.verify:
            manifest = replace(manifest, parity=verify.prove(partial, manifest, checkpoint, progress))
        artifact.write_manifest(partial, manifest)
        _replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _weights(options: Options, ops: ModuleType) -> str:
    weights = options.weights or ops.WEIGHTS[0]
    if weights not in ops.WEIGHTS:
        raise UserError(f"WEIGHTS {weights!r} with TARGET {options.target}; choose from {', '.join(ops.WEIGHTS)}")
    return str(weights)


def _shape(options: Options, config: LlamaConfig) -> tuple[Shape, tuple[int, ...]]:
    """The traced shape (the largest bucket) and every bucket, 1 (decode) among them."""
    longest = config.max_position_embeddings
    context = options.context or min(CONTEXT, longest)
    if not 1 <= context <= longest:
        raise UserError(f"CONTEXT is {context:,}; this model's positions go to {longest:,} (max_position_embeddings)")
    buckets = options.buckets or tuple(b for b in BUCKETS if b <= context)
    if bad := [b for b in buckets if not 1 <= b <= context]:
        raise UserError(f"BUCKETS holds {bad[0]}; a bucket has 1 to {context:,} tokens (CONTEXT)")
    buckets = tuple(sorted({1, *buckets}))
    return Shape(options.batch, buckets[-1], context), buckets


def _write_graph(
    checkpoint: Checkpoint,
    shape: Shape,
    buckets: tuple[int, ...],
    ops: ModuleType,
    folder: Path,
    progress: Progress,
) -> Graph:
    from exporter import constants, mindir, trace

    config = checkpoint.config
    inputs = ops.inputs(config, shape) + ops.caches(config, shape)
    with progress.stage(f"Tracing {config.num_hidden_layers} layers at {shape.tokens} tokens"):
        model = mindir.lower(trace.trace(config, shape, ops), inputs)
    total = sum(4 * int(np.prod(p.dims)) for p in model.graph.parameter)
    with progress.bytes("Writing weights", total) as done:
        data = constants.write_constants(
            model, folder, "graphs/step.data", lambda name: ops.value(name, checkpoint, shape.context), done
        )
    name = "graphs/step.mindir"
    (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    entry = artifact.file_entry(folder, name)
    return Graph(
        file=name,
        sha256=entry.sha256,
        bytes=entry.bytes,
        bucket=shape.tokens,
        buckets=buckets,
        inputs=_specs(inputs),
        outputs=_specs(ops.outputs(config, shape)),
        data=(data,),
    )


def _specs(tensors: list[Input]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.dtype, t.shape) for t in tensors)


def _manifest(
    options: Options,
    weights: str,
    source: Source,
    checkpoint: Checkpoint,
    shape: Shape,
    buckets: tuple[int, ...],
    ops: ModuleType,
    graph: Graph,
) -> Manifest:
    config = checkpoint.config
    cache = ops.caches(config, shape)
    return Manifest(
        name=source.name,
        source=artifact.Source(options.model, source.origin, checkpoint.revision, source.licence),
        config=config.to_dict(),
        target=options.target,
        opset=options.target,
        weights_format=weights,
        batch=shape.rows,
        context=shape.context,
        buckets=buckets,
        graphs=(graph,),
        weights=None,
        cache=CacheSpec(cache[0].dtype, ops.CACHE_POLICY, config.num_hidden_layers, cache[0].shape),
        eos_token_id=checkpoint.eos_token_id(),
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        tools={name: metadata.version(name) for name in TOOLS},
        kernel_abi=None,
        parity=None,
    )


def _check_disk(out: Path, checkpoint: Checkpoint) -> None:
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    needed = sum(4 * int(np.prod(checkpoint.shape(name))) for name in checkpoint.names())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(f"{parent} has {free / 1e9:.1f} GB free; the artifact needs {needed / 1e9:.1f} GB. Set OUT=")


def _replace(partial: Path, out: Path) -> None:
    """Put the whole folder in place of what was there."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
