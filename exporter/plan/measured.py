"""Compares the cost model with a measurement: exact sizes, and times at the bandwidth and rate that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellama.artifact.json_reader import read_object
from edgellama.engine.chunks import plan_chunks
from edgellama.errors import UserError

from .cost import Plan, prompt_passes, roofline

SCHEMA_VERSION = 1
SETTINGS = ("target", "batch", "context")


def read(path: Path) -> dict[str, Any]:
    """Read a report of `edgellama bench --json`. Raises UserError for any other file."""
    try:
        found = read_object(path, "Write it with `edgellama bench --json FILE`")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file. Write it with `edgellama bench --json FILE`") from error
    version = found.get("schema_version")
    if version != SCHEMA_VERSION or not {"artifact", "bandwidth", "prefill", "decode"} <= found.keys():
        raise UserError(
            f"{path}: schema_version is {version!r}; needed: a report of `edgellama bench --json FILE`, "
            f"version {SCHEMA_VERSION}"
        )
    return found


def settings(report: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the measured artifact, as fields of ExportOptions.

    Args:
        given: the options that the user gave

    Raises UserError if one of them differs from the artifact.
    """
    artifact = report["artifact"]
    taken = {name: artifact[name] for name in SETTINGS}
    taken |= {"weights": artifact["weights_format"], "cache": artifact["cache_dtype"]}
    taken["buckets"] = tuple(artifact["buckets"])
    for name, value in given.items():
        other = tuple(sorted({1, *value})) if name == "buckets" and value else value
        if other is not None and other != taken.get(name, other):
            raise UserError(f"--{name} is {value}; the measured artifact has {taken[name]}. Leave it out")
    return taken


def compare(plan: Plan, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `measured` object of a plan (see exporter.plan).

    Decode is compared with the graph's part of a step. The rate of arithmetic is the rate of the longest prompt:
    therefore the prediction for that prompt is right by definition.
    """
    artifact = report["artifact"]
    bandwidth = report["bandwidth"]["rate"]["max"]
    sizes = [
        ("weights file", plan.weights_file(), artifact["weights_bytes"]),
        ("weights a step reads", plan.step_weight_bytes(), artifact["step_weights_bytes"]),
        ("cache", plan.cache_bytes(), artifact["cache_bytes"]),
    ]
    prompts = [entry for entry in report["prefill"] if entry["rows"] == plan.shape.rows]
    steps = [entry for entry in report["decode"] if entry["rows"] == plan.shape.rows]
    if not prompts or not steps:
        raise UserError(
            f"the measurement has no figures for {plan.shape.rows} rows; measure with --batches {plan.shape.rows}"
        )
    work = {n["prompt_tokens"]: prompt_passes(plan, plan_chunks(n["prompt_tokens"], plan.buckets)) for n in prompts}
    longest = max(prompts, key=lambda entry: entry["prompt_tokens"])
    flops = sum(w.flops for w in work[longest["prompt_tokens"]]) / longest["seconds"]["median"]
    times = []
    for entry in prompts:
        predicted = sum(max(roofline(w, bandwidth, flops)) for w in work[entry["prompt_tokens"]])
        times.append((f"prefill of {entry['prompt_tokens']:,} tokens", predicted, entry["seconds"]["median"]))
    for entry in steps:
        start = min(entry["depth"] + report["settings"]["steps"] // 2, plan.shape.context - 1)
        predicted = max(roofline(plan.cost(1, start), bandwidth, flops))
        times.append((f"decode step after {entry['depth']:,} tokens", predicted, entry["model_seconds"]["median"]))
    return {
        "bandwidth": bandwidth,
        "flops": flops,
        "sizes": [{"what": what, "predicted": p, "found": f} for what, p, f in sizes],
        "times": [{"what": what, "predicted": p, "found": f, "ratio": f / p} for what, p, f in times],
    }
