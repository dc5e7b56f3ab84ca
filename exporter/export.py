"""One way to export: checkpoint -> graphs, weights, tokenizer and manifest, proved, in one folder."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from edgellama.artifact.manifest import (
    CacheSpec,
    FileEntry,
    Graph,
    Manifest,
    Source,
    TensorSpec,
    file_entry,
    write_manifest,
)
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import CHIPS

from .ascend.convert_config import CONFIG, conversion_config
from .checkpoint.base import Checkpoint
from .checkpoint.open import open_model
from .export_options import ExportOptions, add_options, given_options, shape_of
from .graph_spec import Shape
from .mindir.lower import parameters
from .opsets.ascend_model_checks import check_operators, logits_in_float32
from .progress import Progress
from .proof import verify
from .targets import TARGETS
from .writing import atomic_folder
from .writing.constants import write_constants
from .writing.weights_file import write_weights

MOST_ELEMENTS = 1 << 31
TOOLS = ("mindspore", "transformers", "safetensors", "gguf", "numpy", "onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama export`."""
    add_options(parser)
    parser.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> None:
    """Run the command `export`. Raises UserError as `export` does."""
    progress = Progress()
    out = export(ExportOptions(**given_options(arguments)), progress)
    progress.console.print(f"wrote {out}", highlight=False)


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama artifact-folder`, which the Makefile uses."""
    parser.description = "Print the folder that `export` writes with the same arguments."
    add_options(parser)
    parser.set_defaults(run=lambda arguments: print(ExportOptions(**given_options(arguments)).folder()))


def export(options: ExportOptions, progress: Progress) -> Path:
    """Write the artifact and return its folder. Nothing is left behind where it fails; UserError says why."""
    seed = (options.seed or 0) if options.synthetic else None
    source, checkpoint = open_model(options.model, seed)
    ops = TARGETS[options.target].opset.cells()
    shape, buckets = shape_of(options, checkpoint.config)
    if shape.chip is not None and not logits_in_float32(checkpoint.config):
        progress.console.print("The logits will be float16: the vocabulary or the hidden size is no multiple of 16")
    out = options.folder()
    tokenizer = checkpoint.tokenizer_files()  # what is wrong with it is told before any work

    with atomic_folder.whole(out) as partial:
        (partial / "graphs").mkdir()
        graphs, weights = _write_graphs(checkpoint, shape, buckets, ops, partial, progress)
        for name, data in tokenizer.items():
            (partial / name).write_bytes(data)
        config = checkpoint.config.to_dict()
        (partial / "config.json").write_text(verify.json_text(config), encoding="utf-8")
        origin = Source(options.model, source.origin, checkpoint.revision, source.licence, seed)
        manifest = _manifest(options.target, source.name, origin, checkpoint, shape, buckets, graphs, weights)
        if options.verify:
            manifest = replace(manifest, parity=verify.prove(partial, manifest, checkpoint, progress))
        write_manifest(partial, manifest)
    return out


def _write_graphs(
    checkpoint: Checkpoint,
    shape: Shape,
    buckets: tuple[int, ...],
    ops: ModuleType,
    folder: Path,
    progress: Progress,
) -> tuple[tuple[Graph, ...], FileEntry | None]:
    """Every graph file, and the file of the weights where they are inputs of the graphs."""
    from . import trace
    from .mindir import lower as mindir

    config = checkpoint.config
    graphs: list[Graph] = []
    weights: dict[str, TensorSpec] = {}
    for served in ops.SPEC.graphs(buckets):
        traced = replace(shape, tokens=served[-1])
        inputs = ops.SPEC.inputs(config, traced)
        declared = ops.SPEC.declared_inputs(config, traced)
        _check_elements(inputs, "CONTEXT or BATCH")
        with progress.stage(f"Tracing {config.num_hidden_layers} layers at {traced.tokens} tokens"):
            model = mindir.lower(trace.trace(config, traced, ops), declared)
        _check_elements(parameters(model), "WEIGHTS")
        name = f"graphs/{traced.tokens}.mindir"
        if shape.chip is not None:
            chip = CHIPS[shape.chip]
            check_operators(model, chip)
            config_file = folder / "graphs" / CONFIG
            config_file.write_text(conversion_config(chip, declared, served), encoding="utf-8")
        data: tuple[FileEntry, ...] = ()
        if ops.SPEC.weights_are_inputs:
            moved = mindir.parameters_to_inputs(model)
            weights.update({tensor.name: tensor for spec in moved for tensor in ops.stored(spec, config, shape)})
            inputs = inputs + moved
        else:
            data = (_write_constants(model, checkpoint, shape, ops, folder, name, progress),)
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))
        entry = file_entry(folder, name)
        outputs = tuple(ops.SPEC.outputs(config, traced))
        graphs.append(Graph(name, entry.sha256, entry.bytes, traced.tokens, served, tuple(inputs), outputs, data))
    if not weights:
        return tuple(graphs), None
    specs = list(weights.values())
    total = sum(spec.nbytes for spec in specs)
    _check_disk(folder, total)
    with progress.bytes("Writing weights", total) as done:
        return tuple(graphs), write_weights(
            folder, "weights.safetensors", specs, lambda name: ops.pieces(name, checkpoint, shape), done
        )


def _write_constants(
    model: Any,
    checkpoint: Checkpoint,
    shape: Shape,
    ops: ModuleType,
    folder: Path,
    graph: str,
    progress: Progress,
) -> FileEntry:
    total = sum(spec.nbytes for spec in parameters(model))
    _check_disk(folder, total)
    with progress.bytes("Writing weights", total) as done:
        return write_constants(
            model,
            folder,
            str(Path(graph).with_suffix(".data")),
            lambda name: ops.pieces(name, checkpoint, shape),
            done,
        )


def _manifest(
    target: str,
    name: str,
    source: Source,
    checkpoint: Checkpoint,
    shape: Shape,
    buckets: tuple[int, ...],
    graphs: tuple[Graph, ...],
    weights: FileEntry | None,
) -> Manifest:
    config, opset = checkpoint.config, TARGETS[target].opset
    cache = opset.cache_inputs(config, shape)
    return Manifest(
        name=name,
        source=source,
        config=config.to_dict(),
        target=target,
        opset=opset.name,
        weights_format=shape.weights,
        batch=shape.rows,
        context=shape.context,
        buckets=buckets,
        graphs=graphs,
        weights=weights,
        cache=CacheSpec(cache[0].dtype, opset.cache_policy, config.num_hidden_layers, cache[0].shape),
        eos_token_id=checkpoint.eos_token_id(),
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        tools={name: metadata.version(name) for name in TOOLS},
        kernel_abi=opset.kernel_abi,
        parity=None,
    )


def _check_elements(specs: Sequence[TensorSpec], smaller: str) -> None:
    """Raise UserError for a tensor that MindSpore Lite 2.0, which counts elements in 31 bits, would not bind."""
    for spec in specs:
        if math.prod(spec.shape) >= MOST_ELEMENTS:
            raise UserError(
                f"{spec.name} would have {math.prod(spec.shape):,} elements ({spec.dtype}); MindSpore Lite 2.0 takes "
                f"fewer than {MOST_ELEMENTS:,} in one tensor. Choose a smaller {smaller}"
            )


def _check_disk(folder: Path, needed: int) -> None:
    """Raise UserError where the weights (`needed` bytes) do not fit beside what is on the disk."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent.absolute()} has {free / 1e9:.1f} GB free; the weights need {needed / 1e9:.1f} GB. Set OUT="
        )
