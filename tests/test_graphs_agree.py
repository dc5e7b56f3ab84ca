"""The same graph through MindSpore Lite, MindSpore itself and the ONNX twin, over the runtime's own engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import step_runs
from checkpoints import CONFIGS
from step_runs import expected, relative_error, run_schedule

from exporter.onnx_run import twin_engine
from runtime.artifact import Artifact

TOLERANCE = 2e-6  # of the range of the logits: float32 sums in another order, through two or three layers
MINDSPORE = ("gqa-3to1", "head-size-20", "yarn")  # it compiles each bucket of each, a second or two a time


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
    """So that agreement is not of three wrong graphs."""
    twin = run_schedule(twin_engine(Artifact.open(config_artifacts[name])))
    assert relative_error(twin, expected(tiny_checkpoint(**CONFIGS[name]))) < TOLERANCE
