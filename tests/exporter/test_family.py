"""Mistral and Qwen2: tests of windows beyond the common schedule (checkpoints.CONFIGS), and generate()."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgellama.artifact.manifest import Artifact, Manifest
from edgellama.engine.step_inputs import MASKED, StepInputs
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.proof import verify
from edgellama.exporter.proof.float_reference import _numpy, _transformers
from support.checkpoints import CONFIGS, export_all
from support.exported import generate
from support.step_runs import CONTEXT, relative_error, token_rows

FAMILY = [name for name in CONFIGS if name.startswith(("mistral", "qwen2"))]
WINDOW = 12
MODELS: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW, "pad_token_id": 7},
    "qwen2": {
        **{"model_type": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "pad_token_id": 7,
    },
}
KEYS = [(family, target) for family in MODELS for target in ("portable", "cpu")]


@pytest.mark.parametrize("name", FAMILY)
def test_both_references_agree(name: str, tiny_checkpoint: Callable[..., Path]) -> None:
    """Verification uses either: transformers, or numpy if torch is not installed."""
    checkpoint = open_checkpoint(tiny_checkpoint(**CONFIGS[name]))
    tokens, positions = token_rows(checkpoint.config.vocab_size)[0], list(range(CONTEXT))
    expected = _transformers(checkpoint)(tokens, positions)
    assert relative_error(_numpy(checkpoint, tokens, positions), expected) < 1e-5


@pytest.mark.parametrize("name", ["mistral-window-17", "qwen2-windows-16"])
def test_a_window_sways_the_logits(name: str, tiny_checkpoint: Callable[..., Path]) -> None:
    """It changes the logits of tokens beyond it and no others, so the tests detect a graph without the window."""
    checkpoint = open_checkpoint(tiny_checkpoint(**CONFIGS[name]))
    tokens, positions = token_rows(checkpoint.config.vocab_size)[0], list(range(CONTEXT))
    windowed = _numpy(checkpoint, tokens, positions)
    checkpoint.config = dataclasses.replace(checkpoint.config, sliding_window=None, layer_types=())
    difference = np.abs(windowed - _numpy(checkpoint, tokens, positions)).max(axis=1) / np.ptp(windowed)
    window = int(name.rpartition("-")[2])
    assert difference[:window].max() == 0
    assert difference[window:].min() > 1e-3


@pytest.fixture(scope="module")
def artifacts(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("family")
    jobs = [
        {
            **{"model": tiny_checkpoint(**MODELS[family]), "target": target, "weights": "fp32", "context": 64},
            **{"buckets": [8, 32], "batch": 3, "out": folder / f"{family}-{target}"},
        }
        for family, target in KEYS
    ]
    return dict(zip(KEYS, export_all(jobs), strict=True))


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_proof_covers_the_windows_edge(key: tuple[str, str], artifacts: dict[tuple[str, str], Path]) -> None:
    manifest = Artifact.open(artifacts[key]).manifest
    assert manifest.config["sliding_window"] == WINDOW
    edges, prefix, steps = verify.plan(manifest)
    assert {WINDOW - 1, WINDOW, WINDOW + 1} <= set(edges)
    assert prefix + steps > WINDOW
    assert manifest.parity is not None and manifest.parity.relative < 1e-5


def test_a_long_window_is_decoded_across(artifacts: dict[tuple[str, str], Path]) -> None:
    manifest = Artifact.open(artifacts["mistral", "portable"]).manifest
    cache = dataclasses.replace(manifest.cache, shape=(3, 2, 8192, 16))
    config = {**manifest.config, "sliding_window": 4096}
    long: Manifest = dataclasses.replace(manifest, config=config, context=8192, cache=cache)
    edges, prefix, steps = verify.plan(long)
    assert {4095, 4096, 4097} <= set(edges)
    assert prefix < 4096 - 1 and prefix + steps > 4096 + 1


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_generate_gives_transformers_tokens_across_the_window(
    key: tuple[str, str], artifacts: dict[tuple[str, str], Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    """Prompts around the size of the window, padded on either side, in batches of three rows; greedy and beams."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(**MODELS[key[0]]), dtype=torch.float32).eval()
    rng = np.random.default_rng(3)
    rows = [rng.integers(8, 250, size).tolist() for size in (WINDOW - 1, WINDOW, WINDOW + 1, 3, 33)]
    width = max(map(len, rows))
    left = np.array([[7] * (width - len(row)) + row for row in rows])
    right = np.array([row + [7] * (width - len(row)) for row in rows])
    settings = {"max_new_tokens": 2 * WINDOW, "eos_token_id": -1, "pad_token_id": 7, "do_sample": False}
    found = generate(
        artifacts[key],
        {"input_ids": left, "attention_mask": left != 7, **settings},
        {"input_ids": right, "attention_mask": right != 7, **settings},
        {"input_ids": left, "attention_mask": left != 7, **settings, "num_beams": 3},
    )
    greedy, beams = (
        model.generate(torch.tensor(left), attention_mask=torch.tensor(left != 7), **settings, **more).numpy()
        for more in ({}, {"num_beams": 3})
    )
    np.testing.assert_array_equal(found[0], greedy)
    np.testing.assert_array_equal(found[1][:, width:], greedy[:, width:])
    np.testing.assert_array_equal(found[2], beams)


def test_a_mask_row_per_token_only_where_a_window_is_passed(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, config_artifacts: dict[str, Path]
) -> None:
    def masks(folder: Path) -> dict[str, tuple[int, ...]]:
        graph = Artifact.open(folder).manifest.graphs[0]
        return {spec.name: spec.shape for spec in graph.inputs if "mask" in spec.name}

    model = tiny_checkpoint(**CONFIGS["mistral-window-17"])
    job = {"model": model, "target": "portable", "context": 17, "buckets": [8], "out": tmp_path / "short"}
    (short,) = export_all([job])
    assert masks(short) == {"cache_mask": (1, 1, 1, 17), "self_mask": (1, 1, 16, 8)}
    own = {"window_cache_mask": (2, 1, 32, 64), "window_self_mask": (2, 1, 32, 16)}
    assert masks(config_artifacts["mistral-window-17"]) == own
    both = {"cache_mask": (2, 1, 1, 64), "self_mask": (2, 1, 32, 16), **own}
    assert masks(config_artifacts["qwen2-windows-16"]) == both
    assert masks(config_artifacts["qwen2"]) == {"cache_mask": (2, 1, 1, 64), "self_mask": (2, 1, 32, 16)}


@pytest.mark.parametrize("window", [1, 3, 16, 17, 40, 64])
def test_masks_say_what_the_window_means(window: int, config_artifacts: dict[str, Path]) -> None:
    """Position i attends to j if i - window < j <= i: each j once, in the cache or among the tokens of the call."""
    graph = Artifact.open(config_artifacts["mistral-window-17"]).manifest.graphs[0]
    step = StepInputs(graph, 16, 64, window)
    start, length = np.array([0, 41]), np.array([16, 9])
    step.fill(np.zeros((2, 16), np.int32), start, length)
    cache = step.arrays["window_cache_mask"].reshape(2, 2, 16, 64)
    own = step.arrays["window_self_mask"].reshape(2, 2, 16, 16)
    assert set(np.unique(cache)) | set(np.unique(own)) <= {np.float32(0), MASKED}
    for row in range(2):
        for token in range(length[row]):
            i = start[row] + token
            seen = set(np.flatnonzero(cache[row, 1, token] == 0)) | {
                start[row] + t for t in np.flatnonzero(own[row, 1, token] == 0)
            }
            assert seen == set(range(max(0, i - window + 1), i + 1))
    np.testing.assert_array_equal(cache[:, 0], cache[:, 1])
