"""The command `inspect`: prints an artifact's graphs, operators, inputs, sizes, memory at run time and proof."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgellama.artifact.manifest import Artifact, Manifest, TensorSpec
from edgellama.artifact.source import Calibration
from edgellama.artifact.step_graph import CACHE_PREFIXES, STEP_INPUTS
from edgellama.errors import UserError
from edgellama.mindir.check import check_graphs

from .mindir import graph as mindir_graph
from .mindir.graph import MindIRGraph
from .network.windows import SLIDING
from .plan.memory import COPIES_NOTE, run_time_memory
from .progress import Progress
from .tables import facts_table, new_table, size

NEW_ROWS = ("k_new.", "v_new.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama inspect`."""
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="write each graph as ONNX, for Netron")
    parser.set_defaults(run=run_inspect)


def run_inspect(arguments: argparse.Namespace) -> None:
    """Run the command `inspect`. Raises UserError as `inspect` does."""
    progress = Progress()
    inspect(arguments.artifact, arguments.onnx, progress)


def inspect(artifact: Path, onnx_dir: Path | None, progress: Progress) -> None:
    """Print the tables on standard output.

    Args:
        onnx_dir: write each graph into this folder as ONNX too

    A graph that CANN has compiled is no longer MindIR: for it, only the tables of the manifest are printed. Raises
    UserError if the folder is not a complete artifact, and for onnx_dir with a compiled graph.
    """
    opened = Artifact.open(artifact, check="sizes")
    if opened.manifest.converted is not None:
        if onnx_dir is not None:
            raise UserError(
                f"{artifact} was compiled by CANN and has no ONNX form. Give the folder that `export` wrote"
            )
        for table in (_model(opened.manifest), _tensors(opened.manifest), _parity(opened.manifest)):
            Console().print(table)
        return
    check_graphs(opened)
    graphs = {g.file: mindir_graph.read(opened.file(g.file)) for g in opened.manifest.graphs}
    console = Console()
    for table in tables(opened.manifest, graphs):
        console.print(table)
    if onnx_dir is not None:
        from .onnx_twin import translate as onnx_twin

        with progress.stage("Writing ONNX"):
            paths = onnx_twin.write(opened, onnx_dir)
        for path in paths:
            progress.console.print(f"wrote {path}", highlight=False)


def tables(manifest: Manifest, graphs: dict[str, MindIRGraph]) -> list[Table]:
    """Return the tables of an artifact. graphs: the graphs of the manifest, by file name"""
    return [
        _model(manifest),
        _graphs(manifest, graphs),
        _operators(graphs),
        _tensors(manifest),
        _memory(manifest, graphs),
        _parity(manifest),
    ]


def _model(manifest: Manifest) -> Table:
    config, source = manifest.config, manifest.source
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    rope = (config.get("rope_scaling") or {}).get("rope_type", "default")
    return facts_table(
        manifest.name,
        [
            ("source", f"{source.origin} ({source.model})"),
            ("adapters", ", ".join(f"{one.folder} x {one.scale:g}" for one in source.adapters) or None),
            ("calibration", _calibration(source.calibration)),
            ("revision", source.revision),
            ("licence", source.licence),
            ("network", f"{config['num_hidden_layers']} layers, hidden {config['hidden_size']}, "
                        f"{heads} heads, {groups} key/value heads, head size {config['head_dim']}, "
                        f"MLP {config['intermediate_size']}, vocabulary {config['vocab_size']:,}"),
            ("attention", _attention(config)),
            ("rope", f"{rope}, theta {config['rope_theta']:g}"),
            ("target", f"{manifest.target} (op set {manifest.opset}, weights {manifest.weights_format})"),
            ("converted", _converted(manifest)),
            ("rows", manifest.batch),
            ("context", f"{manifest.context:,} tokens"),
            ("buckets", ", ".join(map(str, manifest.buckets))),
            ("written with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
        ],
    )  # fmt: skip


def _calibration(found: Calibration | None) -> str | None:
    return None if found is None else f"{found.text} ({found.tokens:,} tokens, sha256 {found.sha256[:12]})"


def _converted(manifest: Manifest) -> str | None:
    if manifest.opset != "ascend":
        return "not needed"
    if (done := manifest.converted) is None:
        return "not yet: make convert"
    return f"for {done.soc}, by CANN {done.cann} and MindSpore Lite {done.mindspore_lite}"


def _attention(config: dict[str, Any]) -> str:
    """Return the type of the model, and its sliding window if it has one."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if window is None:
        return f"{config['model_type']}, every token sees all earlier tokens"
    windowed = config.get("layer_types", [SLIDING] * layers).count(SLIDING)
    return f"{config['model_type']}, sliding window of {window:,} tokens in {windowed} of {layers} layers"


def _graphs(manifest: Manifest, graphs: dict[str, MindIRGraph]) -> Table:
    table = new_table("Graphs", "file", "buckets", "nodes", "size", "weights inside", numbers=(2, 3, 4))
    for graph in manifest.graphs:
        weights = graphs[graph.file].parameters
        table.add_row(
            escape(graph.file),
            ", ".join(map(str, graph.buckets)),
            f"{len(graphs[graph.file].operations):,}",
            size(graph.bytes),
            f"{len(weights)} tensors, {size(sum(w.nbytes for w in weights))}" if weights else "-",
        )
    return table


def _operators(graphs: dict[str, MindIRGraph]) -> Table:
    """Return the count of each operator, one column per graph. Operators of this project's kernels are marked."""
    counts = {file: Counter(_label(op) for op in graph.operations) for file, graph in graphs.items()}
    table = new_table("Operators", "operator", *(Path(file).stem for file in counts), numbers=range(1, 1 + len(counts)))
    total = sum(counts.values(), Counter[str]())
    for label, _ in sorted(total.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(escape(label), *(f"{count[label]:,}" for count in counts.values()))
    return table


def _label(op: mindir_graph.Operation) -> str:
    if op.operator == "Custom":
        return f"{op.attributes.get('reg_op_name', '?')} (custom)"
    return op.operator


def _tensors(manifest: Manifest) -> Table:
    graph = manifest.graphs[-1]
    table = new_table(
        f"Inputs and outputs at bucket {graph.bucket}", "", "name", "dtype", "shape", "size", numbers=(4,)
    )
    for direction, specs in (("in", graph.inputs), ("out", graph.outputs)):
        for names, dtype, shape, nbytes in _grouped(specs):
            table.add_row(direction, escape(names), dtype, escape(shape), size(nbytes))
    return table


def _grouped(specs: Sequence[TensorSpec]) -> list[tuple[str, str, str, int]]:
    """Return lines of (name, dtype, shape, bytes).

    Step inputs and logits have one line each. Caches, cache scales, new cache rows and weights have one line together.
    """
    groups: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        if spec.name.startswith(CACHE_PREFIXES):
            key = "caches" if spec.name.startswith(CACHE_PREFIXES[:2]) else "cache scales"
        elif spec.name.startswith(NEW_ROWS):
            key = "new cache rows"
        else:
            key = spec.name if spec.name in (*STEP_INPUTS, "logits") else "weights"
        groups.setdefault(key, []).append(spec)
    lines = []
    for key, members in groups.items():
        first, last = members[0], members[-1]
        name = key if len(members) == 1 else f"{key}: {len(members)}, {first.name} ... {last.name}"
        dtypes, shapes = {m.dtype for m in members}, {str(list(m.shape)) for m in members}
        dtype, shape = (only.pop() if len(only) == 1 else "various" for only in (dtypes, shapes))
        lines.append((name, dtype, shape, sum(m.nbytes for m in members)))
    return lines


def _memory(manifest: Manifest, graphs: dict[str, MindIRGraph]) -> Table:
    memory = run_time_memory(manifest, graphs)
    cache = manifest.cache
    table = new_table("Memory at run time, estimated", "", "", "", numbers=(1,), header=False)
    table.add_row("weights", size(memory.weights), "on disk, and one copy in memory")
    if memory.copies:
        table.add_row("added by loading", size(memory.copies), COPIES_NOTE)
    shape = escape(f"{2 * cache.layers} x {cache.dtype} {list(cache.shape)}")
    table.add_row("cache", size(memory.cache), f"{shape}; a page takes memory after its first write")
    table.add_row("activations", size(memory.activations), "peak at the largest bucket")
    table.add_row("libraries", size(memory.libraries), "Python, numpy, MindSpore Lite")
    table.add_row("total", size(memory.total), "", style="bold")
    return table


def _parity(manifest: Manifest) -> Table:
    parity = manifest.parity
    if parity is None:
        return facts_table("Proof", [("parity", "not measured: exported with --no-verify")])
    return facts_table(
        f"Proof: compared with {parity.reference}",
        [
            ("max |d logits|", f"{parity.max_abs_logit_error:.2e} ({parity.relative:.1e} of their range)"),
            ("top-1 agreement", f"{parity.top1_agreement:.1%} of {parity.steps} positions"),
        ],
    )
