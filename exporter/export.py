"""The command `export`: writes one folder with the graphs, weights, tokenizer and manifest of a checkpoint.

The artifact is then compared with a reference (proof/verify.py).
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from edgellama.artifact.manifest import (
    Artifact,
    CacheSpec,
    FileEntry,
    Graph,
    Manifest,
    TensorSpec,
    file_entry,
    write_manifest,
)
from edgellama.artifact.source import MergedAdapter, Source, format_of
from edgellama.engine.weights_memory import MAP
from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import CHIPS
from edgellama.kernels.weight_format import W4_GROUPS
from edgellama.mindir.check import check_graphs

from .calibration.calibrated import CalibratedCheckpoint
from .calibration.text import calibration_tokens
from .checkpoint.base import Checkpoint
from .checkpoint.folded import folded
from .checkpoint.merged import MergedCheckpoint, merged
from .checkpoint.open import open_model
from .checkpoint.row_blocks import Piece
from .checkpoint.source import local_files
from .checkpoint.tokenizer_files import to_json
from .export_options import ExportOptions, add_options, given_options, shape_of
from .graph_spec import Shape
from .mindir.lower import parameters
from .needed_memory import check_export, check_proof
from .opsets.ascend_model_checks import check_operators, is_version_2, logits_in_float32
from .opsets.cpu_grids import misfit, own_format
from .progress import Progress
from .proof import verify
from .targets import TARGETS
from .writing import atomic_folder
from .writing.companions import write_companions
from .writing.constants import write_constants
from .writing.convert_config import CONFIG, conversion_config
from .writing.weights_file import write_weights

MAX_ELEMENTS = 1 << 31  # MindSpore Lite 2.0 counts the elements of a tensor in 31 bits
WEIGHTS_FILE = "weights.safetensors"
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
    """Write the artifact and return its folder.

    Replaces an empty folder or an older artifact, and refuses anything else before the work begins.

    Raises UserError if the options do not fit the model, if the folder must not be replaced or another process is
    writing it, or if the artifact fails the comparison with the reference. An export that fails leaves nothing behind.
    """
    out = options.folder()
    check_export(options.model)
    adapters = [Path(folder) for folder, _ in options.lora]
    with atomic_folder.claimed(out, *local_files(options.model), *adapters) as claim:
        _export(options, claim, progress)
    return out


def _export(options: ExportOptions, claim: atomic_folder.Claim, progress: Progress) -> None:
    seed = (options.seed or 0) if options.synthetic else None
    source, checkpoint = open_model(options.model, seed)
    if options.rope_scaling is not None:
        checkpoint.config = checkpoint.config.with_rope_scaling(options.rope_scaling)
    checkpoint = merged(checkpoint, options.lora)
    shape, buckets = shape_of(options, checkpoint.config)
    if shape.chip is not None and not logits_in_float32(checkpoint.config):
        progress.console.print(
            "The logits will be float16: the vocabulary size or the hidden size is not a multiple of 16"
        )
    if checkpoint.quantization is not None:
        calibrated = options.calibration is not None
        note = _quantization_note(checkpoint, shape.weights, options.target, calibrated)
        progress.console.print(note, highlight=False)
    if options.tokenizer == "none":
        companions = {"generation_config.json": to_json(checkpoint.generation_config())}
    else:
        companions = checkpoint.tokenizer_files()

    with claim.written() as partial:
        # Before the long work: a tokenizer or a chat template that the runtime cannot use ends the export.
        for note in write_companions(partial, companions, checkpoint.config.vocab_size, checkpoint.path):
            progress.console.print(note, highlight=False, markup=False)
        weights_of, calibration = folded(checkpoint), None
        if options.calibration is not None:
            tokens, calibration = calibration_tokens(options.calibration, partial, checkpoint.config)
            weights_of = CalibratedCheckpoint(weights_of, tokens, shape.weights)
        writer = _Writer(weights_of, shape, TARGETS[options.target].opset.cells(), partial, progress)
        graphs, weights = writer.write(buckets)
        config = checkpoint.config.to_dict()
        (partial / "config.json").write_text(verify.json_text(config), encoding="utf-8")
        adapters = _merged_adapters(checkpoint, options.lora)
        origin = Source(options.model, source.origin, checkpoint.revision, source.licence, seed, adapters, calibration)
        name = source.name + options.adapter_names
        manifest = _manifest(options.target, name, origin, checkpoint, shape, buckets, graphs, weights)
        check_graphs(Artifact(partial, manifest))  # the runtime loads nothing else
        if options.verify:
            check_proof(manifest)
            # mapped, as the artifact may be larger than the free memory
            manifest = replace(manifest, parity=verify.prove(partial, manifest, checkpoint, progress, MAP))
        write_manifest(partial, manifest)


def _quantization_note(checkpoint: Checkpoint, weights: str, target: str, calibrated: bool) -> str:
    """Return what becomes of a quantized checkpoint, in one line."""
    begin = f"The checkpoint is quantized by {checkpoint.quantization}; "
    if calibrated:
        return f"{begin}its values are read as floats, and rounded to {weights} for the text of CALIBRATION"
    if weights in W4_GROUPS:
        return f"{begin}its integers, scales and zero points are stored as they are ({weights})"
    note = f"{begin}its values are read as floats, and stored as {weights}"
    if target != "cpu":
        return note
    own, why = own_format(folded(checkpoint)), misfit(folded(checkpoint))
    if own is not None:
        return f"{note}. WEIGHTS={own} stores its integers as they are"
    return note if why is None else f"{note}. No format stores its integers as they are: {why}"


@dataclass(frozen=True)
class _Writer:
    """Writes the graphs and weights of one checkpoint.

    Attributes:
        shape: at the largest bucket
        ops: the op set's module of cells
    """

    checkpoint: Checkpoint
    shape: Shape
    ops: Any
    folder: Path
    progress: Progress

    def write(self, buckets: tuple[int, ...]) -> tuple[tuple[Graph, ...], FileEntry | None]:
        """Write all graph files, and the weights file if the weights are inputs of the graphs."""
        (self.folder / "graphs").mkdir()
        stored: dict[str, TensorSpec] = {}  # the tensors of the weights file
        graphs = tuple(self._write_graph(served, stored) for served in self.ops.SPEC.graphs(buckets))
        return graphs, self._write_weights(list(stored.values())) if stored else None

    def _write_graph(self, served: tuple[int, ...], stored: dict[str, TensorSpec]) -> Graph:
        """Trace and write the graph that serves these buckets.

        Args:
            stored: receives the tensors that the graph takes from the weights file
        """
        from . import trace
        from .mindir import lower as mindir

        config, spec = self.checkpoint.config, self.ops.SPEC
        traced = replace(self.shape, tokens=served[-1])
        inputs = spec.inputs(config, traced)
        declared = spec.declared_inputs(config, traced)
        _check_elements(inputs, "CONTEXT or BATCH")
        with self.progress.stage(f"Tracing {config.num_hidden_layers} layers at {traced.tokens} tokens"):
            model = mindir.lower(trace.trace(config, traced, self.ops), declared)
        _check_elements(parameters(model), "WEIGHTS")
        if self.shape.chip is not None:
            chip = CHIPS[self.shape.chip]
            check_operators(model, chip)
            ini = self.folder / "graphs" / CONFIG
            ini.write_text(conversion_config(chip, declared, served), encoding="utf-8")
        name = f"graphs/{traced.tokens}.mindir"
        data: tuple[FileEntry, ...] = ()
        if spec.weights_are_inputs:
            moved = mindir.parameters_to_inputs(model)
            stored |= {tensor.name: tensor for x in moved for tensor in self.ops.stored(x, config, self.shape)}
            inputs = inputs + moved
        else:
            data = (self._write_constants(model, str(Path(name).with_suffix(".data"))),)
        (self.folder / name).write_bytes(model.SerializeToString(deterministic=True))
        entry = file_entry(self.folder, name)
        outputs = tuple(spec.outputs(config, traced))
        return Graph(name, entry.sha256, entry.bytes, traced.tokens, served, tuple(inputs), outputs, data)

    def _write_weights(self, specs: list[TensorSpec]) -> FileEntry:
        with self._bar(specs) as done:
            return write_weights(self.folder, WEIGHTS_FILE, specs, self._pieces, done)

    def _write_constants(self, model: Any, name: str) -> FileEntry:
        """Write the constants of a graph into its data file."""
        with self._bar(parameters(model)) as done:
            return write_constants(model, self.folder, name, self._pieces, done)

    def _pieces(self, name: str) -> Iterable[Piece]:
        pieces: Iterable[Piece] = self.ops.pieces(name, self.checkpoint, self.shape)
        return pieces

    def _bar(self, specs: Sequence[TensorSpec]) -> AbstractContextManager[Callable[[int], None]]:
        """Return the progress bar of these tensors. Raises UserError if the disk has no room for them."""
        total = sum(spec.nbytes for spec in specs)
        _check_disk(self.folder, total)
        return self.progress.bytes("Writing weights", total)


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
        kernel_abi=opset.kernel_abi(config, shape.weights),
        parity=None,
        format_version=2 if opset.name == "ascend" and is_version_2(config, shape) else format_of(source),
    )


def _merged_adapters(checkpoint: Checkpoint, given: Sequence[tuple[str, float]]) -> tuple[MergedAdapter, ...]:
    """Return what the manifest says of the adapters that were merged."""
    opened = checkpoint.adapters if isinstance(checkpoint, MergedCheckpoint) else ()
    return tuple(
        MergedAdapter(folder, scale, adapter.revision) for (folder, scale), adapter in zip(given, opened, strict=True)
    )


def _check_elements(specs: Sequence[TensorSpec], smaller: str) -> None:
    """Raise UserError for a tensor that MindSpore Lite 2.0 cannot bind. smaller: the options that reduce its size"""
    for spec in specs:
        if math.prod(spec.shape) >= MAX_ELEMENTS:
            raise UserError(
                f"{spec.name} would have {math.prod(spec.shape):,} elements ({spec.dtype}); MindSpore Lite 2.0 takes "
                f"fewer than {MAX_ELEMENTS:,} in one tensor. Choose a smaller {smaller}"
            )


def _check_disk(folder: Path, needed: int) -> None:
    """Raise UserError if the disk has no room for the weights (`needed` bytes)."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent.absolute()} has {free / 1e9:.1f} GB free; the weights need {needed / 1e9:.1f} GB. "
            "Choose a folder on another disk: OUT=..."
        )
