"""Rounding for a text: the factorization, the rounding against its formula in float64, and whole artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from edgellama.artifact.manifest import Artifact
from edgellama.artifact.safetensors import TensorFile
from edgellama.errors import UserError
from edgellama.exporter.calibration import rounding, text
from edgellama.exporter.calibration.calibrated import CalibratedCheckpoint
from edgellama.exporter.checkpoint.folded import folded
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.export_options import ExportOptions
from edgellama.exporter.opsets.cpu_weights import weight_pieces
from edgellama.kernels import weight_format as wf
from support.checkpoints import export_all
from support.child import run_cli

FORMATS = ("int4", "w4g32", "w4g64", "w4g128")
LAYER = "model.layers.0"


def correlated(tokens: int, k: int, seed: int = 0) -> np.ndarray:
    """Returns inputs [tokens, k] whose columns depend on each other, as those of a network do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, k // 8)) @ rng.standard_normal((k // 8, k))
    return (mixed + 0.5 * rng.standard_normal((tokens, k))).astype(np.float32)


def gram(x: np.ndarray) -> np.ndarray:
    """Returns the Gram matrix, padded to whole groups."""
    pad = -x.shape[1] % 32
    return np.pad(x.T @ x, ((0, pad), (0, pad)))


def plain(w: np.ndarray, fmt: str) -> np.ndarray:
    """Returns the weights of the nearest integers, on the grids of the packer."""
    return wf.unpack(wf.pack(w, fmt), fmt, *w.shape)


@pytest.mark.parametrize("size", [32, 96, 512, 544, 1100])
def test_factor_is_the_reversed_cholesky_factor(size: int) -> None:
    g = gram(correlated(2 * size, size))[:size, :size]
    root = g.copy()
    rounding.factor(root)
    damped = g.astype(np.float64) + np.eye(size) * rounding.DAMPING * np.diag(g).mean()
    expected = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    np.testing.assert_allclose(root, expected, atol=2e-5 * np.abs(expected).max())
    assert not np.tril(root, -1).any()


def test_factor_of_silent_inputs() -> None:
    """Inputs that are always zero: the damping alone; partly zero: no division by zero."""
    root = np.zeros((64, 64), np.float32)
    rounding.factor(root)
    np.testing.assert_array_equal(root, np.eye(64))
    x = correlated(100, 64)
    x[:, 7] = 0
    root = gram(x)
    rounding.factor(root)
    assert np.isfinite(root).all() and (np.diag(root) > 0).all()


def test_factor_refuses_infinite_inputs() -> None:
    g = np.full((32, 32), np.inf, np.float32)
    with pytest.raises(FloatingPointError, match="not finite"):
        rounding.factor(g)


def by_the_paper(w: np.ndarray, x: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Returns GPTQ's integers for given grids [n, K]: its algorithm 1 with the inverse of the Hessian, in float64."""
    g = gram(x).astype(np.float64)
    g += np.eye(len(g)) * rounding.DAMPING * np.diag(g).mean()
    upper = np.linalg.cholesky(np.linalg.inv(g)).T
    left, q = w.astype(np.float64).copy(), np.zeros(w.shape)
    for j in range(w.shape[1]):
        q[:, j] = np.clip(np.rint(left[:, j] / scales[:, j] + zeros[:, j]), 0, 15)
        lost = (left[:, j] - (q[:, j] - zeros[:, j]) * scales[:, j]) / upper[j, j]
        left[:, j:] -= lost[:, None] * upper[j, j:]
    return q


@pytest.mark.parametrize("fmt", FORMATS)
def test_integers_are_those_of_the_paper(fmt: str) -> None:
    x, w = correlated(500, 256), np.random.default_rng(1).standard_normal((48, 256)).astype(np.float32)
    root = gram(x)
    rounding.factor(root)
    found = rounding.round_rows(w, root, fmt)
    size = rounding.group_size(fmt)
    ones = rounding.Rounded(found.cells, np.ones_like(found.q), found.quarters).values(fmt)
    scales = ones - rounding.Rounded(found.cells, np.zeros_like(found.q), found.quarters).values(fmt)
    zeros = np.rint(4 * (1 - ones / scales)) / 4
    assert (scales.reshape(48, -1, size) == scales.reshape(48, -1, size)[..., :1]).all()
    same = found.q == by_the_paper(w, x, scales.astype(np.float64), zeros.astype(np.float64))
    assert same.mean() > 0.999  # float32 may round a tie to the other side, and so change what follows in a row


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(16, 32), (5, 96), (48, 300), (33, 416)])
def test_values_are_those_of_the_packed_bytes_and_outputs_change_less(fmt: str, n: int, k: int) -> None:
    """Of every size, also where groups and panels are not full."""
    x, w = correlated(4 * k, k, seed=k), np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    root = gram(x)
    rounding.factor(root)
    found = rounding.round_rows(w, root, fmt)
    pad = ((0, -n % 16), (0, 0))
    zeros = None if found.quarters is None else np.pad(found.quarters, pad)
    packed = wf.pack_groups(fmt, np.pad(found.cells, pad), np.pad(found.q, pad), zeros)
    values = found.values(fmt)[:, :k]
    np.testing.assert_array_equal(wf.unpack(packed, fmt, n, k), values)
    nearest = np.linalg.norm(x @ (plain(w, fmt) - w).T)
    assert np.linalg.norm(x @ (values - w).T) < 0.7 * nearest
    rows = rounding.Rounded.parted(found.joined(), fmt, found.q.shape[1])
    for part, other in zip(rows, found, strict=True):
        np.testing.assert_array_equal(part, other)


def test_constant_rows() -> None:
    """A row of zeros stays zero, and values at float16's limits give finite weights."""
    root = gram(correlated(100, 64))
    rounding.factor(root)
    w = np.zeros((3, 64), np.float32)
    w[1], w[2] = 1e-9, 3e4
    for fmt in FORMATS:
        values = rounding.round_rows(w, root, fmt).values(fmt)
        np.testing.assert_array_equal(values[0], 0)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values[2], 3e4, rtol=0.1)


SIZES = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "max_position_embeddings": 128}


@pytest.mark.parametrize("fmt", ["int4", "w4g64"])
def test_layers_are_rounded_for_the_inputs_that_they_have(fmt: str, tiny_checkpoint: Callable[..., Path]) -> None:
    """Each matrix equals its rounding for the inputs of transformers' model whose earlier matrices are rounded."""
    folder = tiny_checkpoint(**SIZES)
    checkpoint = folded(open_checkpoint(folder))
    tokens = np.random.default_rng(5).integers(0, 256, (6, 40), dtype=np.int32)
    calibrated = CalibratedCheckpoint(checkpoint, tokens, fmt)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    taken: dict[str, np.ndarray] = {}
    for layer in range(3):
        for names in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)):
            block = "mlp" if names[0] in ("gate", "up", "down") else "self_attn"
            full = [f"model.layers.{layer}.{block}.{name}_proj" for name in names]
            hook = model.get_submodule(full[0]).register_forward_pre_hook(
                lambda _, inputs: taken.update(x=inputs[0].detach().numpy().reshape(-1, inputs[0].shape[-1]))
            )
            with torch.no_grad():
                model(torch.from_numpy(tokens.astype(np.int64)))
            hook.remove()
            root = gram(taken["x"])
            rounding.factor(root)
            for name in full:
                weight = model.get_submodule(name).weight
                expected = rounding.round_rows(weight.detach().numpy(), root, fmt).values(fmt)[:, : weight.shape[1]]
                found = calibrated.rounded(f"{name}.weight", 0, len(weight)).values(fmt)[:, : weight.shape[1]]
                # The inputs differ in their last bits, so some values next to a tie fall to its other side.
                assert np.mean(found == expected) > 0.98, name
                weight.data = torch.from_numpy(found.copy())


def test_packed_pieces_have_the_rounded_values(tiny_checkpoint: Callable[..., Path]) -> None:
    """Through the merging of q, k and v, and of gate and up; the embedding stays int8."""
    checkpoint = folded(open_checkpoint(tiny_checkpoint(**SIZES)))
    tokens = np.random.default_rng(5).integers(0, 256, (4, 40), dtype=np.int32)
    one, two = (CalibratedCheckpoint(checkpoint, tokens, "w4g32") for _ in range(2))

    def unpacked(name: str, fmt: str, n: int, k: int) -> np.ndarray:
        return wf.unpack(np.concatenate([piece() for piece in weight_pieces(name, one, fmt)]), fmt, n, k)

    def rounded(name: str) -> np.ndarray:
        whole = f"{LAYER}.{name}_proj.weight"
        return two.rounded(whole, 0, two.shape(whole)[0]).values("w4g32")[:, : two.shape(whole)[1]]

    qkv = np.concatenate([rounded(f"self_attn.{part}") for part in "qkv"])
    np.testing.assert_array_equal(unpacked(f"{LAYER}.self_attn.qkv_proj.weight", "w4g32", *qkv.shape), qkv)
    both = wf.interleave_gate_up(rounded("mlp.gate"), rounded("mlp.up"))
    np.testing.assert_array_equal(unpacked(f"{LAYER}.mlp.gate_up_proj.weight", "w4g32", *both.shape), both)
    down = rounded("mlp.down")
    np.testing.assert_array_equal(unpacked(f"{LAYER}.mlp.down_proj.weight", "w4g32", *down.shape), down)
    table = checkpoint.tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(unpacked("model.embed_tokens.weight", "int8", *table.shape), plain(table, "int8"))


def test_artifacts_say_what_they_were_rounded_for_and_pass_their_proof(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder, own = tiny_checkpoint(**SIZES), tmp_path / "own.txt"
    own.write_text("The quick brown fox jumps over the lazy dog. " * 100, encoding="utf-8")
    sizes: dict[str, Any] = {"model": folder, "context": 64, "buckets": [16], "calibration": str(own)}
    jobs = [
        {**sizes, "weights": "int4", "out": tmp_path / "int4"},
        {**sizes, "weights": "w4g128", "out": tmp_path / "w4g128", "calibration": "default"},
    ]
    export_all(jobs)  # each passes its proof
    for job, name, count in ((jobs[0], "own.txt", 4096), (jobs[1], "default", 4096)):
        artifact = Artifact.open(Path(job["out"]))
        found = artifact.manifest.source.calibration
        assert found is not None and found.text == name and 1024 <= found.tokens <= count
        assert artifact.manifest.format_version == 2
    weights = TensorFile(tmp_path / "int4" / "weights.safetensors")
    assert weights.array(f"{LAYER}.self_attn.o_proj.weight").dtype == np.uint8
    assert "own.txt (" in run_cli("inspect", str(tmp_path / "int4")).stdout


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"CALIBRATION rounds to 4 bits.*TARGET=cpu with WEIGHTS=int8.*Leave CALIBRATION"
    ):
        ExportOptions("x", weights="int8", calibration="default")
    with pytest.raises(UserError, match="TARGET=portable"):
        ExportOptions("x", target="portable", calibration="default")
    with pytest.raises(UserError, match="TOKENIZER=none"):
        ExportOptions("x", tokenizer="none", calibration="default")
    options = ExportOptions("x.gguf", calibration="default", lora=(("style", 1.0),), weights="w4g128")
    assert options.folder().name.endswith("-cpu-w4g128-calibrated")
    assert ExportOptions("x.gguf", calibration="default").weights_format() == "int4"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff\xfe\x00", "not UTF-8"), (b"too short", "tokens; needed: at least 1,024")],
)
def test_bad_texts_are_refused(
    content: bytes | None, message: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    folder = tiny_checkpoint()
    with pytest.raises(UserError, match=message):
        text.calibration_tokens(str(path), folder, open_checkpoint(folder).config)
