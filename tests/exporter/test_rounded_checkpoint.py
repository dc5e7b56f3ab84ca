"""Reads the weights of an artifact back: every matrix is found, with no larger error than its format explains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgellama.artifact.manifest import TensorSpec
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.synthetic import SyntheticCheckpoint
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.opsets import cpu_weights
from edgellama.exporter.proof.rounded_checkpoint import RoundedCheckpoint
from edgellama.exporter.writing.weights_file import write_weights
from edgellama.kernels import weight_format as wf
from support.checkpoints import CONFIGS, DEFAULTS

CONFIG = LlamaConfig.from_dict({**DEFAULTS, **CONFIGS["head-size-20"], "model_type": "llama", "intermediate_size": 104})


def packed_folder(folder: Path, weights: str) -> tuple[SyntheticCheckpoint, Any]:
    """The manifest and the weights file of a network whose k and gate end inside a panel."""
    checkpoint = SyntheticCheckpoint(CONFIG, 0)
    shapes = {"model.embed_tokens.weight": (264, 64)}
    for layer in range(2):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.qkv_proj.weight": (160, 64), f"{name}.self_attn.o_proj.weight": (64, 80)}
        shapes |= {f"{name}.mlp.gate_up_proj.weight": (224, 64), f"{name}.mlp.down_proj.weight": (64, 104)}

    def fmt(name: str) -> str:
        return cpu_weights.format_of(name, weights)

    specs = [TensorSpec(n, "uint8", (wf.panel_count(o), wf.panel_bytes(fmt(n), i))) for n, (o, i) in shapes.items()]
    entry = write_weights(folder, "w", specs, lambda n: cpu_weights.weight_pieces(n, checkpoint, fmt(n)))
    source = SimpleNamespace(calibration=None)
    return checkpoint, SimpleNamespace(weights=entry, weights_format=weights, source=source)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_every_matrix_is_the_checkpoints_rounded(tmp_path: Path, weights: str) -> None:
    checkpoint, manifest = packed_folder(tmp_path, weights)
    rounded = RoundedCheckpoint(tmp_path, manifest, checkpoint)
    for name in checkpoint.names():
        exact, found = checkpoint.tensor(name), rounded.tensor(name)
        if exact.ndim == 1:
            np.testing.assert_array_equal(found, exact)
            continue
        fmt = cpu_weights.format_of(name, weights)
        np.testing.assert_array_equal(found, wf.unpack(wf.pack(exact, fmt), fmt, *exact.shape))
        np.testing.assert_array_equal(rounded.rows(name, 37, 11), found[37:48])


def test_a_matrix_that_is_not_the_checkpoints_is_named(tmp_path: Path) -> None:
    checkpoint, manifest = packed_folder(tmp_path, "int8")
    other = SyntheticCheckpoint(CONFIG, 1)
    wrong = r"model\.layers\.0\.self_attn\.k_proj\.weight \(rows 0\.\.39\) differs in the artifact by 1\."
    with pytest.raises(UserError, match=wrong):
        RoundedCheckpoint(tmp_path, manifest, other).tensor("model.layers.0.self_attn.k_proj.weight")
    size = wf.panel_bytes("int8", 104)
    data = np.memmap(tmp_path / "w", np.uint8, mode="r+")
    data[len(data) - size + 256 :] ^= 0x40  # the quantized values in the last panel of the last matrix
    data.flush()
    name = "model.layers.1.mlp.down_proj.weight"
    rounded = RoundedCheckpoint(tmp_path, manifest, checkpoint)
    assert rounded.rows(name, 0, 48).shape == (48, 104)
    with pytest.raises(UserError, match=r"down_proj\.weight \(rows 48\.\.63\).*int8 explains 0\.02"):
        rounded.rows(name, 48, 16)
