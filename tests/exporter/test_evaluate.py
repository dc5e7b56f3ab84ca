"""Compares the formulas of the evaluation with torch and scipy, and an artifact with its reference."""

from __future__ import annotations

import configparser
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy, sem

from edgellama.__main__ import main
from edgellama.artifact.manifest import Artifact
from edgellama.errors import UserError
from edgellama.exporter.proof import evaluate, run_artifact
from support.ascend_artifact import ascend_manifest
from support.child import REPOSITORY


def noisy_logits(rows: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(reference, found, targets): logits with a wide range, slightly different logits, and the next tokens."""
    rng = np.random.default_rng(3)
    reference = (rng.normal(size=(rows, vocabulary)) * 20).astype(np.float32)
    found = reference + rng.normal(size=reference.shape).astype(np.float32)
    return reference, found, rng.integers(0, vocabulary, rows).astype(np.int32)


def test_scores_are_those_of_torch_and_scipy() -> None:
    reference, found, targets = noisy_logits(40, 70)
    scores = evaluate.score(reference, found, targets)
    wide, goal = torch.from_numpy(found).double(), torch.from_numpy(targets).long()
    np.testing.assert_allclose(scores.nll, torch.nn.functional.cross_entropy(wide, goal, reduction="none"), rtol=1e-9)
    p, q = (softmax(x.astype(np.float64), axis=-1) for x in (reference, found))
    np.testing.assert_allclose(scores.kl, entropy(p, q, axis=-1), rtol=1e-6, atol=1e-12)
    assert 0 < scores.agrees.mean() < 1
    assert scores.agrees.sum() == sum(a.argmax() == b.argmax() for a, b in zip(reference, found, strict=True))


def test_summary_gives_means_quantile_and_standard_errors() -> None:
    scores = evaluate.score(*noisy_logits(60, 30))
    found = evaluate.summary(scores)
    assert found["perplexity"] == pytest.approx(np.exp(scores.nll.mean()))
    # delta method: d exp(m) = exp(m) dm
    assert found["perplexity_error"] == pytest.approx(np.exp(scores.nll.mean()) * sem(scores.nll))
    assert found["kl_mean"] == pytest.approx(scores.kl.mean()) and found["kl_error"] == pytest.approx(sem(scores.kl))
    assert found["kl_p99"] == pytest.approx(np.percentile(scores.kl, 99))


def test_equal_logits_have_no_divergence() -> None:
    reference, _, targets = noisy_logits(10, 30)
    scores = evaluate.score(reference, reference + np.float32(2), targets)  # adding a constant changes no probability
    assert np.abs(scores.kl).max() < 1e-5 and scores.agrees.all()
    np.testing.assert_allclose(scores.nll, scores.reference_nll, rtol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "context", "shape", "first"),
    [(5000, 2048, (9, 512), 255), (600, 64, (9, 64), 31), (100, 2048, (1, 100), 49), (4, 64, (1, 4), 1)],
)
def test_windows_are_whole_and_fit_the_context(tokens: int, context: int, shape: tuple[int, int], first: int) -> None:
    ids = np.arange(tokens, dtype=np.int32)
    windows, begin = evaluate.cut(ids, context)
    assert windows.shape == shape and begin == first
    np.testing.assert_array_equal(windows.ravel(), ids[: windows.size])


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(UserError, match="3 tokens are too few"):
        evaluate.cut(np.arange(3, dtype=np.int32), 64)


def test_the_text_is_public_domain_prose_of_a_few_thousand_tokens() -> None:
    text = evaluate.TEXT.read_text(encoding="utf-8")
    assert text.startswith("CHAPTER I. Down the Rabbit-Hole") and 3000 < len(text.split()) < 10000


def test_the_text_is_part_of_the_installed_package() -> None:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    assert evaluate.TEXT.parent == Path(evaluate.__file__).parent
    assert evaluate.TEXT.match(config["options.package_data"]["edgellama.exporter.proof"])


def test_a_float32_artifact_is_its_reference(
    tiny_artifact: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Alice was beginning to get very tired of sitting by her sister on the bank. " * 4)
    arguments = ["evaluate", str(tiny_artifact), "--checkpoint", str(tiny_checkpoint()), "--text", str(text)]
    assert main([*arguments, "--tokens", "200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["windows"], found["window"], found["scored_tokens"]) == (3, 64, 96)  # 2 rows: batches of 2 and 1
    assert found["prefill_share"] == pytest.approx(32 / 63)
    assert 0 <= found["kl_mean"] < 1e-6 and found["top1_agreement"] == 1
    assert found["perplexity"] == pytest.approx(found["reference_perplexity"], rel=1e-4)

    assert main([*arguments, "--tokens", "64"]) == 0
    assert "top-1 agreement   100.00%" in capsys.readouterr().out


def test_another_models_checkpoint_is_refused(
    tiny_artifact: Path, tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_checkpoint(num_hidden_layers=3)
    assert main(["evaluate", str(tiny_artifact), "--checkpoint", str(other)]) == 2
    assert "is another model than" in capsys.readouterr().err


def test_a_device_is_refused_for_an_artifact_without_devices(
    tiny_artifact: Path, tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The number reaches the engine of the child process, which refuses it."""
    for command in ("evaluate", "verify"):
        arguments = [command, str(tiny_artifact), "--checkpoint", str(tiny_checkpoint())]
        assert main([*arguments, "--device-id", "1"]) == 2
        assert "device_id is 1, and" in (error := capsys.readouterr().err) and "Leave device_id out" in error


def test_a_device_is_refused_for_an_artifact_that_is_not_converted(tmp_path: Path) -> None:
    ascend_manifest(tmp_path, converted=None)
    with pytest.raises(UserError, match=r"device_id is 0, and .* is not converted, .* Convert it, or leave"):
        run_artifact.engine_for(Artifact.open(tmp_path), "map", 0)


def test_a_missing_text_is_reported(
    tiny_artifact: Path, tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(tiny_artifact), "--checkpoint", str(tiny_checkpoint()), "--text", "nowhere.txt"]
    assert main(arguments) == 2
    assert "nowhere.txt: no such file" in capsys.readouterr().err
