"""Compares artifacts of the cpu op set in MindSpore Lite with transformers; checks what a graph build refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellama.exporter.mindir.schema import pb
from support import step_runs
from support.checkpoints import CONFIGS, export_all
from support.child import run_child

SIZES: dict[str, Any] = {
    "context": step_runs.CONTEXT,
    "buckets": list(step_runs.BUCKETS[1:]),
    "batch": step_runs.BATCH,
    "verify": False,
    "target": "cpu",
}
# Weights, cache -> tolerance of the logits, as a fraction of their range.
FORMATS = {
    ("fp32", "float32"): 1e-5,
    ("fp32", "float16"): 3e-3,
    ("fp32", "int8"): 5e-2,
    ("bf16", "float16"): 3e-2,
    ("int8", "float16"): 5e-2,
    ("int4", "float16"): 0.4,
}


@pytest.fixture(scope="module")
def artifacts(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Every config in float32, and every format for one config, exported by one process."""
    folder = tmp_path_factory.mktemp("cpu")
    jobs: dict[Any, dict[str, Any]] = {
        name: {"model": tiny_checkpoint(**config), "weights": "fp32", "out": folder / name, **SIZES}
        for name, config in CONFIGS.items()
    }
    for weights, cache in FORMATS:
        out = folder / f"{weights}-{cache}"
        jobs[weights, cache] = {"model": tiny_checkpoint(), "weights": weights, "cache": cache, "out": out, **SIZES}
    return dict(zip(jobs, export_all(list(jobs.values())), strict=True))


@pytest.fixture(scope="module")
def logits(artifacts: dict[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    runs = step_runs.run_in_child("lite", list(artifacts.values()), tmp_path_factory.mktemp("runs"))
    return dict(zip(artifacts, runs, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_is_transformers(name: str, logits: dict[Any, Any], tiny_checkpoint: Callable[..., Path]) -> None:
    wanted = step_runs.expected(tiny_checkpoint(**CONFIGS[name]))
    assert step_runs.relative_error(logits[name], wanted) < 1e-5


@pytest.mark.parametrize("key", FORMATS, ids="-".join)
def test_formats(key: tuple[str, str], logits: dict[Any, Any], tiny_checkpoint: Callable[..., Path]) -> None:
    error = step_runs.relative_error(logits[key], step_runs.expected(tiny_checkpoint()))
    assert error < FORMATS[key]
    assert error > 0 or key[0] == "fp32"


def build(graph: Path) -> subprocess.CompletedProcess[str]:
    """Builds a graph file with MindSpore Lite in a child process."""
    code = (
        "import sys; from pathlib import Path; from edgellama.backend.lite_graph import LiteGraph, import_lite\n"
        "from edgellama.backend.cpu_kernels import register\n"
        "import_lite(); register(); LiteGraph(Path(sys.argv[1]), 1)"
    )
    return run_child("-c", code, str(graph), status=None)


def other_shape(model: Any) -> None:
    weight = next(v for v in model.graph.input if v.name == "model.layers.1.*")
    weight.tensor[0].dims[0] -= 1


def other_type(model: Any) -> None:
    next(v for v in model.graph.input if v.name == "v_cache.1").tensor[0].data_type = 3  # int8


def other_attribute(model: Any, name: str, text: str) -> None:
    for primitive in model.primitives:
        own = next(a for a in primitive.attribute if a.name == "attr")
        for key, value in zip(own.values[::2], own.values[1::2], strict=True):
            if key.strings[0] == name.encode():
                del value.values[:]
                for byte in text.encode():
                    value.values.add(type=pb.AttributeProto.UINT8, ints=[byte])


REFUSED = {
    "shape": (other_shape, "EdgeDecoderLayer model.layers.1: model.layers.1.* is uint8"),
    "type": (other_type, "EdgeDecoderLayer model.layers.1: v_cache.1 is int8"),
    "abi": (lambda model: other_attribute(model, "abi", "99"), "the graph was exported for kernel ABI 99"),
    "format": (lambda model: other_attribute(model, "format", "int3"), "attribute format is int3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_weights_that_do_not_fit_are_refused_by_name(what: str, artifacts: dict[Any, Path], tmp_path: Path) -> None:
    change, message = REFUSED[what]
    source = artifacts["int8", "float16"] / "graphs" / "1.mindir"
    model = pb.ModelProto.FromString(source.read_bytes())
    change(model)
    changed = tmp_path / "changed.mindir"
    changed.write_bytes(model.SerializeToString())
    done = build(changed)
    assert done.returncode != 0
    assert message in done.stderr
    assert build(source).returncode == 0
