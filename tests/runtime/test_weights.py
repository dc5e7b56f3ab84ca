"""Compares the memory-mapped weights with the safetensors library; damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from edgellama.artifact.manifest import TensorSpec
from edgellama.artifact.safetensors import ALIGNMENT, TensorFile
from edgellama.errors import UserError
from edgellama.exporter.writing.weights_file import write_weights

TENSORS = {
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "f16": np.linspace(-1, 1, 7, dtype=np.float16),
    "i8": np.arange(-8, 8, dtype=np.int8).reshape(2, 2, 4),
    "u8": np.arange(5, dtype=np.uint8),
    "i16": np.array([[300]], np.int16),
    "i32": np.array([1 << 30], np.int32),
    "i64": np.array([1 << 60], np.int64),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_tensors_are_what_the_library_wrote_and_share_the_file(path: Path) -> None:
    weights = TensorFile(path)
    for name, expected in TENSORS.items():
        assert name in weights
        got = weights.array(name)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(got, expected)
        assert not got.flags.owndata and not got.flags.writeable
    assert "other" not in weights


def test_a_stretch_is_the_bytes_of_everything_below_a_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = [TensorSpec(f"layers.{layer}.{name}", "float32", (3,)) for layer in (1, 10) for name in "ab"]
    value = {tensor.name: np.arange(3, dtype=np.float32) + i for i, tensor in enumerate(tensors)}
    write_weights(tmp_path, path.name, tensors, lambda name: [lambda: value[name]])
    for layer in (1, 10):
        found = TensorFile(path).array(f"layers.{layer}.*")
        assert found.shape == (2 * ALIGNMENT,) and found.ctypes.data % ALIGNMENT == 0
        for i, name in enumerate("ab"):
            part = found[i * ALIGNMENT :][:12].view(np.float32)
            np.testing.assert_array_equal(part, value[f"layers.{layer}.{name}"])
    with pytest.raises(UserError, match=r"layers.2.\*' are not one contiguous range"):
        TensorFile(path).array("layers.2.*")


def test_bfloat16_comes_as_its_bits(tmp_path: Path) -> None:
    values = torch.tensor([1.0, -2.5, 3.14], dtype=torch.bfloat16)
    save_torch({"w": values}, tmp_path / "w.safetensors")
    bits = TensorFile(tmp_path / "w.safetensors").array("w")
    np.testing.assert_array_equal((bits.astype(np.uint32) << 16).view(np.float32), values.float().numpy())


def test_damage_is_reported(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    with pytest.raises(UserError, match="has no tensor 'w'"):
        TensorFile(path).array("w")
    cut = tmp_path / "cut"
    cut.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="ends outside the file"):
        for name in TENSORS:
            TensorFile(cut).array(name)
    for rest in (whole[:50], b"\xff" * 40):
        cut.write_bytes(rest)
        with pytest.raises(UserError, match="not valid JSON"):
            TensorFile(cut)
    cut.write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        TensorFile(cut)
