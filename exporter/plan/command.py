"""The command `plan`: makes a Plan of MODEL and the options, and the object that --json prints of the Plan."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellama.kernels.ascend.chips import Board

from ..checkpoint.base import read_config_file
from ..checkpoint.open import open_checkpoint
from ..checkpoint.presets import PRESETS
from ..checkpoint.source import expanded, resolve
from ..export_options import ExportOptions, add_options, given_options, shape_of
from ..network.config import LlamaConfig
from . import measured, report
from .boards import BOARDS
from .cost import Pass, Plan, roofline
from .estimate import seconds as estimated_seconds
from .tensors import parameters

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PlanOptions:
    """The options of `edgellama plan`.

    Attributes:
        model: as for export; nothing is downloaded for a preset or a folder with a config.json
        given: the other options of export that the user gave, by name
        measured: a report of `edgellama bench --json`
    """

    model: str
    given: Mapping[str, Any] = field(default_factory=dict)
    measured: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgellama plan`."""
    parser.description = (
        "Prints the memory, the bytes and operations per token, the roofline's times on each board, and the boards "
        "that the model fits. A preset or a folder's config.json is enough: nothing is downloaded. "
        "`pydoc edgellama.exporter.plan` describes the JSON."
    )
    add_options(parser, planned=True)
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="compare with a report of `edgellama bench --json`"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> None:
    """Run the command `plan`: print tables or one JSON object. Raises UserError as `describe` does."""
    given = given_options(arguments)
    found = describe(PlanOptions(given.pop("model"), given, arguments.measured))
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        report.show(found)


def describe(options: PlanOptions) -> dict[str, Any]:
    """Return the object that --json prints (see exporter.plan).

    Raises UserError for options that export refuses, and for a measurement of another artifact.
    """
    name, config = _model(options.model)
    given, bench = options.given, None
    if options.measured is not None:
        bench = measured.read(options.measured)
        given = measured.settings(bench, given)
    else:
        given = {**given, "weights": ExportOptions(options.model, **given).weights_format()}
    plan = make(config, **given)
    memory = plan.memory()
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": name,
            "parameters": parameters(plan.config),
            "layers": plan.config.num_hidden_layers,
            "config": plan.config.to_dict(),
        },
        "target": plan.target,
        "weights": plan.shape.weights,
        "cache": plan.shape.cache,
        "batch": plan.shape.rows,
        "context": plan.shape.context,
        "buckets": list(plan.buckets),
        "memory": {
            "weights": memory.weights,
            "copies": memory.copies,
            "cache": memory.cache,
            "workspace": memory.activations,
            "gears": plan.gears(),
            "libraries": memory.libraries,
            "total": plan.total(),
        },
        "files": {"weights_file": plan.weights_file()},
        "passes": [_pass(work) for work in plan.passes()],
        "boards": [_board(plan, board) for board in BOARDS[plan.target]],
        "measured": measured.compare(plan, bench) if bench else None,
    }


def make(config: LlamaConfig, **given: Any) -> Plan:
    """Return the plan of a model.

    Args:
        given: fields of ExportOptions; the others have export's defaults

    Raises UserError for options that export refuses.
    """
    options = ExportOptions(model="", **given)
    if options.rope_scaling is not None:
        config = config.with_rope_scaling(options.rope_scaling)
    shape, found = shape_of(options, config)
    return Plan(config, options.target, shape, found)


def _model(model: str) -> tuple[str, LlamaConfig]:
    """Return the name and config of MODEL. A preset and a folder need no weights."""
    preset, folder = PRESETS.get(model.lower()), expanded(model)
    if preset is not None:
        return preset.name, preset.config
    if model and (folder / "config.json").is_file():
        return folder.resolve().name, read_config_file(folder / "config.json")
    source = resolve(model)
    return source.name, open_checkpoint(source.path).config


def _pass(work: Pass) -> dict[str, int]:
    return {
        "bucket": work.bucket,
        "start": work.start,
        "weight_bytes": work.weight_bytes,
        "cache_bytes": work.cache_bytes,
        "bytes": work.bytes,
        "flops": work.flops,
    }


def _board(plan: Plan, board: Board) -> dict[str, Any]:
    return {
        "name": board.name,
        "memory_bytes": board.memory,
        "available_bytes": board.available,
        "bandwidth": board.bandwidth,
        "flops": board.flops,
        "fits": plan.total() <= board.available,
        "largest_context": plan.largest_context(board),
        "times": _times(plan, board),
        "sources": list(board.sources),
        "assumed": list(board.assumed),
    }


def _times(plan: Plan, board: Board) -> list[dict[str, Any]] | None:
    if board.bandwidth is None or board.flops is None:
        return None
    found = []
    for work in plan.passes():
        memory, compute = roofline(work, board.bandwidth, board.flops)
        seconds = max(memory, compute)
        estimated = estimated_seconds(plan, board, work)
        found.append(
            {
                "bucket": work.bucket,
                "start": work.start,
                "seconds": seconds,
                "memory_seconds": memory,
                "compute_seconds": compute,
                "tokens_per_second": plan.shape.rows * work.bucket / seconds,
                "estimated_seconds": list(estimated) if estimated else None,
            }
        )
    return found
