"""Runs the same graph in MindSpore Lite, in MindSpore and as the ONNX twin, each with the runtime's engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellama.artifact.manifest import Artifact
from edgellama.exporter.onnx_twin.run import twin_engine
from support import step_runs
from support.checkpoints import CONFIGS, export_all
from support.step_runs import expected, relative_error, run_schedule

TOLERANCE = 4e-6  # of the range of the logits: float32 sums in another order, and soft caps, in a few layers
# MindSpore compiles each bucket of each config, which takes one or two seconds
MINDSPORE = (
    "gqa-3to1",
    "head-size-20",
    "yarn",
    "qwen2-windows-16",
)
# Weights and cache of the cpu target -> tolerance of its logits. With integer weights, activations have 16 bits, or 8
# bits with AMX and enough tokens in a call. An entry of the cache may be rounded differently.
CPU = {
    ("fp32", "float32"): TOLERANCE,
    ("fp32", "float16"): 1e-4,
    ("bf16", "float16"): 5e-3,
    ("int8", "int8"): 1e-2,
    ("int4", "float16"): 1e-2,
}


@pytest.fixture(scope="module")
def cpu_artifacts(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("cpu")
    model = tiny_checkpoint(**CONFIGS["head-size-20"])
    sizes = {"context": step_runs.CONTEXT, "buckets": step_runs.BUCKETS[1:], "batch": step_runs.BATCH}
    jobs = [
        {
            "model": model,
            "target": "cpu",
            "weights": weights,
            "cache": cache,
            "verify": False,
            "out": folder / f"{weights}-{cache}",
            **sizes,
        }
        for weights, cache in CPU
    ]
    return dict(zip(CPU, export_all(jobs), strict=True))


@pytest.fixture(scope="module")
def cpu_logits(
    cpu_artifacts: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], np.ndarray]:
    runs = step_runs.run_in_child("lite", list(cpu_artifacts.values()), tmp_path_factory.mktemp("lite"))
    return dict(zip(cpu_artifacts, runs, strict=True))


@pytest.fixture(scope="module")
def mindspore_logits(
    config_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    artifacts = [config_artifacts[name] for name in MINDSPORE]
    runs = step_runs.run_in_child("mindspore", artifacts, tmp_path_factory.mktemp("mindspore"))
    return dict(zip(MINDSPORE, runs, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_onnx_twin_agrees_with_the_runtime(
    name: str, config_artifacts: dict[str, Path], lite_logits: dict[str, np.ndarray]
) -> None:
    twin = run_schedule(twin_engine(Artifact.open(config_artifacts[name])))
    assert relative_error(twin, lite_logits[name]) < TOLERANCE


@pytest.mark.parametrize("name", MINDSPORE)
def test_mindspore_itself_agrees_with_the_runtime(
    name: str, mindspore_logits: dict[str, np.ndarray], lite_logits: dict[str, np.ndarray]
) -> None:
    assert relative_error(mindspore_logits[name], lite_logits[name]) < TOLERANCE


@pytest.mark.parametrize("name", MINDSPORE)
def test_the_twin_is_the_checkpoints_network(
    name: str, config_artifacts: dict[str, Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    """This excludes three graphs that agree but are wrong."""
    twin = run_schedule(twin_engine(Artifact.open(config_artifacts[name])))
    assert relative_error(twin, expected(tiny_checkpoint(**CONFIGS[name]))) < TOLERANCE


@pytest.mark.parametrize(("weights", "cache"), CPU)
def test_cpu_graphs_agree_with_their_kernels_definitions(
    weights: str,
    cache: str,
    cpu_artifacts: dict[tuple[str, str], Path],
    cpu_logits: dict[tuple[str, str], np.ndarray],
) -> None:
    """Compares MindSpore Lite with our kernels and the twin with kernels/reference.py: graph, weights, caches."""
    twin = run_schedule(twin_engine(Artifact.open(cpu_artifacts[weights, cache])))
    assert relative_error(twin, cpu_logits[weights, cache]) < CPU[weights, cache]


def test_the_fp32_cpu_twin_is_the_checkpoints_network(
    cpu_artifacts: dict[tuple[str, str], Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    twin = run_schedule(twin_engine(Artifact.open(cpu_artifacts["fp32", "float32"])))
    assert relative_error(twin, expected(tiny_checkpoint(**CONFIGS["head-size-20"]))) < TOLERANCE
