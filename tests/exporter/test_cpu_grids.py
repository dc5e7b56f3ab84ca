"""4-bit checkpoints on the cpu target: integers, scales and zero points reach the artifact unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from edgellama.artifact.manifest import Artifact
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.base import LINEARS
from edgellama.exporter.checkpoint.folded import folded
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.checkpoint.quantized.grid import FourBits
from edgellama.exporter.export_options import ExportOptions
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.opsets.cpu_grids import misfit, own_format
from edgellama.exporter.opsets.cpu_weights import weight_pieces
from edgellama.exporter.plan.command import PlanOptions, describe
from edgellama.kernels import weight_format as wf
from edgellama.kernels.cpu.library import available_isas
from support import quantized_files as files
from support import step_runs
from support.checkpoints import CONFIGS, DEFAULTS, export_all
from support.child import run_cli

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
SIZES = {"hidden_size": 256, "intermediate_size": 384}
LAYER = "model.layers.1"


def packed(**weights: Any) -> dict[str, Any]:
    settings = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, **weights}
    groups = {"group_0": {"targets": ["Linear"], "weights": settings}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


GROUPED = {"strategy": "group", "group_size": 32, "symmetric": False}
# Name -> writer, quantization_config, inputs of a group (None: all), symmetric, scales of bfloat16, the format.
LAYOUTS: dict[str, tuple[Callable[[np.ndarray], files.Written], dict[str, Any], int | None, bool, bool, str]] = {
    "awq": (partial(files.awq, size=128), AWQ, 128, False, False, "w4g128"),
    "gptq": (partial(files.gptq, size=64), GPTQ, 64, False, False, "w4g64"),
    "channels": (partial(files.pack_quantized, size=None), packed(), None, True, True, "w4g128"),
    "packed": (partial(files.pack_quantized, size=32, symmetric=False), packed(**GROUPED), 32, False, True, "w4g32"),
}


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of floats, whose embedding and output matrix int8 holds exactly."""
    folder = tmp_path_factory.mktemp("source")
    for file in tiny_checkpoint(**SIZES).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.from_numpy(dequantize(quantize(tensors[name].numpy(), Kind.Q8_0), Kind.Q8_0))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("grids")
    return {name: files.write_quantized(source, folder / name, *LAYOUTS[name][:2]) for name in LAYOUTS}


def wanted(source: Path, layout: str, module: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The writer's integers [N, K], and its scales and zero points for groups of the format, as floats."""
    _, _, size, symmetric, halved, fmt = LAYOUTS[layout]
    w = load_file(source / "model.safetensors")[f"{module}.weight"].double().numpy()
    size = size or w.shape[1]
    q, scales, zeros = files.integers(w, w.shape[1] // size, 4, None, symmetric)
    scales = torch.from_numpy(scales)
    scales = (scales.to(torch.bfloat16) if halved else scales).float().numpy()
    times = size // int(fmt.removeprefix("w4g"))
    return q, np.repeat(scales, times, axis=1), np.repeat(zeros, times, axis=1)


def check_layer(source: Path, layout: str, layer: str, stored: Callable[[str], np.ndarray]) -> None:
    """Compares the packed matrices of a layer with the writer's integers, scales and zero points, one by one."""
    fmt = LAYOUTS[layout][-1]
    for joined, parts, inner in (
        ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj"), 256),
        ("self_attn.o_proj", ("o_proj",), 256),
        ("mlp.gate_up_proj", ("gate_proj", "up_proj"), 256),
        ("mlp.down_proj", ("down_proj",), 384),
    ):
        scales, q, zeros = wf.unpack_groups(stored(f"{layer}.{joined}.weight"), fmt, inner)
        found = (q, scales.view(np.float16).astype(np.float32), zeros / 4)
        block = joined.rpartition(".")[0]
        each = [wanted(source, layout, f"{layer}.{block}.{part}") for part in parts]
        for got, want in zip(found, zip(*each, strict=True), strict=True):
            if joined == "mlp.gate_up_proj":  # panels of 16 rows of gate and of up in turn
                gate, up = got.reshape(-1, 2, 16, got.shape[1]).transpose(1, 0, 2, 3).reshape(2, -1, got.shape[1])
                np.testing.assert_array_equal(gate, want[0])
                np.testing.assert_array_equal(up, want[1])
            else:
                np.testing.assert_array_equal(got, np.concatenate(want))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_matrices_have_the_checkpoints_integers(layout: str, written: dict[str, Path], source: Path) -> None:
    checkpoint, fmt = open_checkpoint(written[layout] / "quantized"), LAYOUTS[layout][-1]
    assert own_format(checkpoint) == fmt and misfit(checkpoint) is None
    check_layer(
        source, layout, LAYER, lambda name: np.concatenate([piece() for piece in weight_pieces(name, checkpoint, fmt)])
    )
    values = load_arrays(written[layout] / "floats" / "model.safetensors")[f"{LAYER}.mlp.down_proj.weight"]
    pieces = [piece() for piece in weight_pieces(f"{LAYER}.mlp.down_proj.weight", checkpoint, fmt)]
    np.testing.assert_array_equal(wf.unpack(np.concatenate(pieces), fmt, 256, 384), values)


def test_artifacts_have_the_integers_and_the_logits_of_the_values(
    written: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    """Exported without WEIGHTS. The logits are those of transformers over the dequantized values.

    The kernels quantize activations to 16 bits, and to 8 with AMX and enough tokens in a call.
    """
    sizes = {"context": step_runs.CONTEXT, "buckets": list(step_runs.BUCKETS[1:]), "batch": step_runs.BATCH}
    names = ["awq", "packed"]
    jobs: list[dict[str, Any]] = [
        {"model": written[name] / "quantized", "out": tmp_path / name, "cache": "float32", **sizes, "verify": False}
        for name in names
    ]
    export_all(jobs)
    runs = step_runs.run_in_child("lite", [job["out"] for job in jobs], tmp_path)
    limit = 1e-2 if "amx" in available_isas() else 3e-4
    for name, logits in zip(names, runs, strict=True):
        assert step_runs.relative_error(logits, step_runs.expected(written[name] / "floats")) < limit
        manifest = Artifact.open(tmp_path / name).manifest
        assert (manifest.weights_format, manifest.kernel_abi) == (LAYOUTS[name][-1], 4)
        stored = load_arrays(tmp_path / name / "weights.safetensors")
        for layer in ("model.layers.0", "model.layers.1"):
            check_layer(source, name, layer, stored.__getitem__)
        plan = describe(PlanOptions(str(written[name] / "quantized"), {"context": 64}))
        assert plan["weights"] == manifest.weights_format
        assert plan["memory"]["weights"] == manifest.weights.bytes


def test_joined_and_rearranged_rows(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Phi-3 joins q, k and v; where a part of a head is rotated, the rows of q and k take another order."""
    source = tiny_checkpoint(**CONFIGS["phi3-partial"])
    folder = files.write_quantized(source, tmp_path, partial(files.gptq, size=32), {**GPTQ, "group_size": 32})
    checkpoint, floats = (folded(open_checkpoint(folder / part)) for part in ("quantized", "floats"))
    assert own_format(checkpoint) == "w4g32"
    for name, rows in ((f"{LAYER}.self_attn.qkv_proj.weight", 128), (f"{LAYER}.mlp.down_proj.weight", 64)):
        each = [
            wf.unpack(np.concatenate([piece() for piece in weight_pieces(name, x, fmt)]), fmt, rows, k)
            for x, fmt in ((checkpoint, "w4g32"), (floats, "f32"))
            for k in (64 if "qkv" in name else 96,)
        ]
        np.testing.assert_array_equal(*each)
    for first, count in ((0, 1), (5, 30), (60, 4)):
        grid = checkpoint.grid(f"{LAYER}.self_attn.q_proj.weight", first, count)
        np.testing.assert_array_equal(grid.values(), floats.rows(f"{LAYER}.self_attn.q_proj.weight", first, count))


class Grids:
    """A checkpoint of one layer: what its matrices of 4 bits are, in turn."""

    config = LlamaConfig.from_dict({**DEFAULTS, "model_type": "llama", "num_hidden_layers": 1})

    def __init__(self, *found: FourBits | None) -> None:
        self.found = found

    def four_bits(self, name: str) -> FourBits | None:
        return self.found[LINEARS.index(name.removeprefix("model.layers.0.").removesuffix(".weight")) % len(self.found)]

    def dtype(self, name: str) -> str:
        return "BF16"


HALF = [FourBits(size) for size in (16, 32, 64, 96, 128, 384, 576)]


def scaled(*scales: float) -> FourBits:
    """A grid with these scales of float32."""
    return FourBits(128, lambda: np.array(scales, np.float32))


@pytest.mark.parametrize(
    ("found", "fmt", "why"),
    [
        ([HALF[1]], "w4g32", None),
        ([HALF[2]], "w4g64", None),
        ([HALF[4], scaled(2**-24, 2**-17 * 1.5, 0.5, -1.25, 65504)], "w4g128", None),
        ([HALF[2], HALF[4]], "w4g64", None),
        ([HALF[3], HALF[4]], "w4g32", None),
        ([HALF[5]], "w4g128", None),
        ([HALF[6]], "w4g64", None),
        ([HALF[0], HALF[4]], None, "_proj.weight has groups of 16 inputs"),
        ([FourBits(None), HALF[4]], None, "_proj.weight has act-order"),
        ([HALF[4], scaled(0.5, 0.1)], None, "k_proj.weight has the scale 0.100000001, which no float16 holds"),
        ([HALF[4], scaled(1e5)], None, "k_proj.weight has the scale 100000, which no float16 holds"),
        ([HALF[4], scaled(2**-18 * 1.0078125)], None, "which no float16 holds"),
        ([None, HALF[4]], None, "_proj.weight is BF16"),
        ([None], None, None),
    ],
)
def test_the_format_is_the_largest_group_that_divides_all(found: list, fmt: str | None, why: str | None) -> None:
    checkpoint: Any = Grids(*found)
    assert own_format(checkpoint) == fmt
    found_why = misfit(checkpoint)
    assert found_why is None if why is None else why in str(found_why)


def changed(folder: Path, to: Path, name: str, tensor: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    tensors = load_file(to / "model.safetensors")
    tensors[name] = tensor(tensors[name].clone()).contiguous()
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_scales_that_no_float16_holds_are_refused_by_name(written: dict[str, Path], tmp_path: Path) -> None:
    """A bfloat16 may be too small for a float16; a float32 is accepted if a float16 holds its value."""
    name = f"{LAYER}.mlp.up_proj"

    def tiny(scale: torch.Tensor) -> torch.Tensor:
        scale[7, 1] = 1.1e-6
        return scale

    folder = changed(written["packed"] / "quantized", tmp_path / "tiny", f"{name}.weight_scale", tiny)
    checkpoint = open_checkpoint(folder)
    assert own_format(checkpoint) is None and f"{name}.weight has the scale 1.1" in (misfit(checkpoint) or "")
    assert ExportOptions(str(folder)).weights_format() == "int8"
    with pytest.raises(UserError, match=r"up_proj\.weight has the scale 1\.1\d*e-06, which no float16.*WEIGHTS=int8"):
        [piece() for piece in weight_pieces(f"{LAYER}.mlp.gate_up_proj.weight", checkpoint, "w4g32")]
    assert [piece() for piece in weight_pieces(f"{LAYER}.mlp.gate_up_proj.weight", checkpoint, "int8")]  # the remedy
    folder = changed(written["awq"] / "quantized", tmp_path / "wide", f"{name}.scales", lambda scale: scale.float())
    checkpoint = open_checkpoint(folder)
    assert own_format(checkpoint) == "w4g128" and misfit(checkpoint) is None
    again = open_checkpoint(written["awq"] / "quantized")
    for one, other in zip(
        weight_pieces(f"{LAYER}.mlp.gate_up_proj.weight", checkpoint, "w4g128"),
        weight_pieces(f"{LAYER}.mlp.gate_up_proj.weight", again, "w4g128"),
        strict=True,
    ):
        np.testing.assert_array_equal(one(), other())


@pytest.mark.parametrize(
    ("layout", "fmt", "why"),
    [
        ("packed", "w4g64", r"q_proj\.weight has groups of 32 inputs\. Use WEIGHTS=int8"),
        ("gptq", "w4g128", r"q_proj\.weight has groups of 64 inputs\. Use WEIGHTS=int8"),
    ],
)
def test_other_groups_are_refused_by_name(layout: str, fmt: str, why: str, written: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(written[layout] / "quantized")
    with pytest.raises(UserError, match=rf"WEIGHTS={fmt} keeps the integers of a checkpoint, and .*{why}"):
        [piece() for piece in weight_pieces(f"{LAYER}.self_attn.qkv_proj.weight", checkpoint, fmt)]


def test_act_order_and_floats_are_refused_by_name_and_fall_back(
    source: Path, tmp_path: Path, written: dict[str, Path]
) -> None:
    write = partial(files.gptq, size=64, act_order=True)
    folder = files.write_quantized(source, tmp_path / "order", write, {**GPTQ, "desc_act": True}) / "quantized"
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UserError, match=r"q_proj\.weight has act-order.*WEIGHTS=int8, which rounds it to 8 bits"):
        [piece() for piece in weight_pieces(f"{LAYER}.self_attn.qkv_proj.weight", checkpoint, "w4g64")]
    with pytest.raises(UserError, match=r"o_proj\.weight is F32"):
        next(weight_pieces(f"{LAYER}.self_attn.o_proj.weight", open_checkpoint(source), "w4g64"))()
    assert ExportOptions(str(folder)).weights_format() == "int8"
    assert ExportOptions(str(written["gptq"] / "quantized")).weights_format() == "w4g64"


def test_the_default_is_the_own_format_of_a_local_folder_on_cpu(written: dict[str, Path], tmp_path: Path) -> None:
    folder = str(written["awq"] / "quantized")
    assert ExportOptions(folder).folder() == Path("artifacts/quantized-cpu-w4g128")
    for options, fmt in (
        ({"weights": "int4"}, "int4"),
        ({"target": "portable"}, "fp32"),
        ({"target": "ascend310p"}, "fp16"),
        ({"synthetic": True}, "int8"),
        ({"lora": (("adapter", 1.0),)}, "int8"),
    ):
        assert ExportOptions(folder, **options).weights_format() == fmt
    assert ExportOptions(str(written["awq"] / "floats")).weights_format() == "int8"
    assert ExportOptions("llama3-8b").weights_format() == ExportOptions("someone/llama-awq").weights_format() == "int8"
    with pytest.raises(UserError, match=r"WEIGHTS=w4g64 keeps the integers.*LORA changes them\. Use WEIGHTS=int4"):
        ExportOptions(folder, weights="w4g64", lora=(("adapter", 1.0),))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    config = json.loads((Path(folder) / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config))
    assert ExportOptions(str(damaged)).weights_format() == "int8"  # the export says what is missing


def test_the_export_says_what_it_keeps(written: dict[str, Path], tmp_path: Path) -> None:
    folder = str(written["gptq"] / "quantized")
    options = ["--no-verify", "--buckets", "4", "--context", "16", "--tokenizer", "none", "--out", str(tmp_path / "x")]
    said = " ".join(run_cli("export", folder, *options).stderr.split())
    assert "quantized by GPTQ (gptq); its integers, scales and zero points are stored as they are (w4g64)" in said
    said = " ".join(run_cli("export", folder, "--weights", "int4", *options).stderr.split())
    assert "stored as int4. WEIGHTS=w4g64 stores its integers as they are" in said
