"""Quantized checkpoints: each layout reads as its formula says and exports; other layouts are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.checkpoint.quantized.scheme import read_scheme
from support import quantized_files as files
from support import step_runs
from support.checkpoints import CONFIGS, export_all

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, "lm_head": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    settings = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, **weights}
    group = {"targets": ["Linear"], "weights": settings, "input_activations": None, "output_activations": None}
    return {
        **{"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed"},
        **{"config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None},
    }


PACK4 = {"num_bits": 4, "strategy": "group", "group_size": 32}
# Name -> writer, quantization_config, layers that stay floats.
LAYOUTS: dict[str, tuple[Callable[[np.ndarray], files.Written], dict[str, Any], tuple[str, ...]]] = {
    "awq": (partial(files.awq, size=32), AWQ, ()),
    "awq-whole": (lambda w: files.awq(w, w.shape[1]), {**AWQ, "group_size": -1, "version": "GEMM"}, ()),
    "awq-skipped": (
        partial(files.awq, size=16),
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 16, "modules_to_not_convert": ["down_proj"]},
        ("down_proj",),
    ),
    "gptq": (partial(files.gptq, size=32), {**GPTQ, "checkpoint_format": "gptq"}, ()),
    "gptq-no-index": (partial(files.gptq, size=32, index=False), GPTQ, ()),
    "gptq-act-order": (partial(files.gptq, size=32, act_order=True), {**GPTQ, "desc_act": True}, ()),
    "gptq-v2": (
        partial(files.gptq, size=16, version=2),
        {**GPTQ, "group_size": 16, "checkpoint_format": "gptq_v2"},
        (),
    ),
    "gptq-8-act-order": (
        partial(files.gptq, size=32, bits=8, act_order=True),
        {**GPTQ, "bits": 8, "desc_act": True},
        ("o_proj",),
    ),
    "gptq-8-v2": (
        lambda w: files.gptq(w, w.shape[1], bits=8, version=2),
        {**GPTQ, "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
        (),
    ),
    "gptq-dynamic": (
        lambda w: files.gptq(w, 32 if len(w) == 96 else 16, bits=8 if len(w) == 96 else 4),
        {**GPTQ, "group_size": 16, "dynamic": {"+:.*(gate|up)_proj": {"bits": 8, "group_size": 32}}},
        (),
    ),
    "pack-4": (partial(files.pack_quantized, size=32), compressed("pack-quantized", **PACK4), ()),
    "pack-4-asymmetric": (
        partial(files.pack_quantized, size=32, symmetric=False),
        compressed("pack-quantized", **PACK4, symmetric=False),
        (),
    ),
    "pack-4-act-order": (
        partial(files.pack_quantized, size=32, symmetric=False, act_order=True),
        compressed("pack-quantized", **PACK4, symmetric=False, actorder="group"),
        (),
    ),
    "pack-4-channel": (
        partial(files.pack_quantized, size=None),
        compressed("pack-quantized", num_bits=4, strategy="channel"),
        (),
    ),
    "pack-8-asymmetric": (
        partial(files.pack_quantized, size=None, bits=8, symmetric=False),
        compressed("pack-quantized", symmetric=False),
        ("v_proj",),
    ),
    "int-8": (files.int_quantized, compressed("int-quantized"), ()),
    "int-8-asymmetric": (
        partial(files.int_quantized, symmetric=False),
        compressed("int-quantized", symmetric=False),
        (),
    ),
    "int-8-groups": (
        partial(files.int_quantized, size=32, symmetric=False),
        compressed("int-quantized", symmetric=False, strategy="group", group_size=32),
        (),
    ),
    "int-8-tensor": (partial(files.int_quantized, whole=True), compressed("int-quantized", strategy="tensor"), ()),
    "float-8-channel": (
        lambda w: files.float8(w, (1, w.shape[1]), "scale"),
        compressed("float-quantized", type="float"),
        (),
    ),
    "float-8-tensor": (
        lambda w: files.float8(w, w.shape, "scale", (1,)),
        compressed("float-quantized", type="float", strategy="tensor"),
        (),
    ),
    "float-8-block": (
        partial(files.float8, block=(32, 48), name="scale"),
        compressed("float-quantized", type="float", strategy="block", block_structure=[32, 48]),
        (),
    ),
    "fp8-block": (
        partial(files.float8, block=(32, 48), name="scale_inv"),
        {**FP8, "weight_block_size": [32, 48]},
        ("q_proj",),
    ),
    "fp8-block-128": (partial(files.float8, block=(128, 128), name="scale_inv"), FP8, ()),
    "fp8-tensor": (
        lambda w: files.float8(w, w.shape, "scale", ()),
        {"quant_method": "fp8", "activation_scheme": "static"},
        (),
    ),
    "fp8-channel": (
        lambda w: files.float8(w, (1, w.shape[1]), "scale", kind=torch.float8_e5m2),
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        (),
    ),
}


@pytest.fixture(scope="module")
def written(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each layout: a folder with `quantized` and `floats`."""
    folder, source = tmp_path_factory.mktemp("quantized"), tiny_checkpoint()
    return {
        name: files.write_quantized(source, folder / name, write, config, skip)
        for name, (write, config, skip) in LAYOUTS.items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_values_are_those_of_the_formula(name: str, written: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(written[name] / "quantized")
    expected = load_file(written[name] / "floats" / "model.safetensors")
    assert set(checkpoint.names()) == set(expected)
    assert checkpoint.quantization is not None
    for weight, tensor in expected.items():
        found = checkpoint.tensor(weight)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, tensor.numpy())
        for first, count in ((0, 1), (5, 11), (len(found) - 3, 3)):  # 5 and 11 are no multiples of a word
            np.testing.assert_array_equal(checkpoint.rows(weight, first, count), found[first : first + count])
        assert checkpoint.raw(weight) is None


def test_artifacts_are_the_float_model(written: dict[str, Path], tmp_path: Path) -> None:
    """In float32, against transformers over the same values."""
    sizes = {"context": step_runs.CONTEXT, "buckets": list(step_runs.BUCKETS[1:]), "batch": step_runs.BATCH}
    jobs: list[dict[str, Any]] = [
        {"model": written[name] / "quantized", "target": target, "out": tmp_path / f"{name}-{target}"}
        for name, target in (("awq", "portable"), ("gptq-act-order", "cpu"), ("fp8-block", "cpu"))
    ]
    for job in jobs:
        job |= {**sizes, "weights": "fp32", "verify": False}
    export_all(jobs)
    runs = step_runs.run_in_child("lite", [job["out"] for job in jobs], tmp_path)
    for job, logits in zip(jobs, runs, strict=True):
        wanted = step_runs.expected(job["model"].parent / "floats")
        assert step_runs.relative_error(logits, wanted) < 1e-5, job["out"]


def test_joined_matrices_and_biases(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Phi-3 joins q, k and v; Qwen2's biases stay floats; a bias of zeros that the network lacks is dropped."""
    for name in ("phi3", "qwen2", "plain"):
        source = tiny_checkpoint(**CONFIGS[name])
        folder = files.write_quantized(
            source, tmp_path / name, partial(files.gptq, size=16), {**GPTQ, "group_size": 16}
        )
        path = folder / "quantized" / "model.safetensors"
        if name == "plain":
            extra = "model.layers.0.mlp.down_proj.bias"
            save_file({**load_file(path), extra: torch.zeros(64)}, path)
        checkpoint, floats = open_checkpoint(folder / "quantized"), open_checkpoint(folder / "floats")
        for weight in floats.names():
            np.testing.assert_array_equal(checkpoint.tensor(weight), floats.tensor(weight))
        if name == "plain":
            save_file({**load_file(path), extra: torch.ones(64)}, path)
            with pytest.raises(UserError, match=f"1 surplus: {extra}"):
                open_checkpoint(folder / "quantized")


def test_scales_of_activations_and_caches_are_ignored(written: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(written["fp8-tensor"], tmp_path)
    path = folder / "model.safetensors"
    layer = "model.layers.0.self_attn"
    extra = {f"{layer}.q_proj.input_scale": torch.ones(()), f"{layer}.k_scale": torch.ones(1)}
    save_file({**load_file(path), **extra}, path)
    assert "model.norm.weight" in open_checkpoint(folder).names()


def edited(written: Path, to: Path, **config: Any) -> Path:
    """Returns a copy of a quantized checkpoint with other keys in its quantization_config."""
    to.mkdir(exist_ok=True)
    for file in (written / "quantized").iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    values = json.loads((to / "config.json").read_text())
    values["quantization_config"] |= config
    (to / "config.json").write_text(json.dumps(values))
    return to


REFUSED = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    "hqq": ({"quant_method": "hqq"}, "HQQ"),
    "aqlm": ({"quant_method": "aqlm"}, "AQLM"),
    "mxfp4": ({"quant_method": "mxfp4"}, "MXFP4"),
    "unknown": ({"quant_method": "newest"}, "'newest'"),
    "no method": ({"bits": 4}, "no quant_method"),
    "no object": ("awq", "is no object"),
    "awq gemv": ({**AWQ, "version": "gemv"}, "AWQ with the layout gemv"),
    "awq marlin": ({**AWQ, "version": "marlin"}, "AWQ with the layout marlin"),
    "awq exllama": ({**AWQ, "version": "exllama"}, "AWQ with the layout exllama"),
    "awq 3": ({**AWQ, "bits": 3}, "AWQ with 3 bits"),
    "awq symmetric": ({**AWQ, "zero_point": False}, "AWQ without zero points"),
    "gptq 3": ({**GPTQ, "bits": 3}, "GPTQ with 3 bits"),
    "gptq 2": ({**GPTQ, "bits": 2}, "GPTQ with 2 bits"),
    "gptq marlin": ({**GPTQ, "checkpoint_format": "marlin"}, "GPTQ with the layout marlin"),
    "gptq is marlin": ({**GPTQ, "is_marlin_format": True}, "GPTQ with the layout marlin"),
    "gptq int16": ({**GPTQ, "pack_dtype": "int16"}, "GPTQ packed in int16"),
    "group 0": ({**GPTQ, "group_size": 0}, "group_size = 0"),
    "bits text": ({**GPTQ, "bits": "4"}, "bits = '4'.*a whole number"),
    "nvfp4": (compressed("nvfp4-pack-quantized", num_bits=4, type="float"), r"nvfp4-pack-quantized, float, 4 bits"),
    "marlin 24": (compressed("marlin-24", num_bits=4), r"marlin-24, int, 4 bits"),
    "pack 2": (compressed("pack-quantized", num_bits=2), r"pack-quantized, int, 2 bits"),
    "sparse": ({**compressed("int-quantized"), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity"),
    "rotated": ({**compressed("int-quantized"), "transform_config": {"config_groups": {"R1": {}}}}, "transforms"),
    "cache": (
        {**compressed("int-quantized"), "kv_cache_scheme": {"num_bits": 8}},
        "KV cache.*Set kv_cache_scheme to null",
    ),
    "activations": (
        {**compressed("int-quantized"), "config_groups": {"g": {"targets": ["Linear"], "weights": None}}},
        r"activations only \(config group g\)",
    ),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"ModelOpt \(NVFP4\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_schemes_are_refused_by_name(name: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """In one line, with the remedy, and before the weights are looked at: the file is damaged."""
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    given, message = REFUSED[name]
    config = json.loads((tiny_checkpoint() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": given}))
    with pytest.raises(UserError, match=message) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
    assert any(remedy in str(error.value) for remedy in ("Export the checkpoint", "config.json of the pub", "Set kv_"))


def test_the_remedy_for_a_quantized_cache(written: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(written["int-8"], tmp_path, kv_cache_scheme={"num_bits": 8, "type": "float"})
    with pytest.raises(UserError, match="Set kv_cache_scheme to null"):
        open_checkpoint(folder)
    edited(written["int-8"], tmp_path, kv_cache_scheme=None)
    open_checkpoint(folder)


def test_quantized_weights_without_their_config(written: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(written["awq"], tmp_path)
    values = json.loads((folder / "config.json").read_text())
    quantization = values.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"proj\.qweight.*no quantization_config\. Add it"):
        open_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": quantization}))  # the remedy
    open_checkpoint(folder)


LAYER = "model.layers.1.mlp.up_proj"


def without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{LAYER}.{part}"]

    return change


def replaced(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.{part}"] = change(tensors[f"{LAYER}.{part}"]).contiguous()

    return edit


def first_is(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


NAMED = LAYER.replace(".", r"\.")
# Layout, change of its tensors, keys of its quantization_config, message.
DAMAGED: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], None] | None, dict[str, Any], str]] = {
    "awq no scales": ("awq", without("scales"), {}, rf"lacks {NAMED}\.scales"),
    "awq no zeros": ("awq", without("qzeros"), {}, rf"lacks {NAMED}\.qzeros"),
    "awq nan": ("awq", replaced("scales", first_is(float("nan"))), {}, rf"{NAMED}\.scales is damaged"),
    "awq infinite": ("awq", replaced("scales", first_is(float("inf"))), {}, rf"{NAMED}\.scales is damaged"),
    "awq zeros shape": ("awq", replaced("qzeros", lambda x: x[:, 1:]), {}, rf"{NAMED}\.qzeros is \[2, 11\]"),
    "awq weight shape": ("awq", replaced("qweight", lambda x: x[:32]), {}, rf"{NAMED}\.scales is \[2, 96\]"),
    "awq type": ("awq", replaced("qweight", lambda x: x.float()), {}, rf"{NAMED}\.qweight is F32; needed: I32"),
    "awq group": ("awq", None, {"group_size": 40}, r"proj\.qweight has 96 inputs, and groups of 40 do not divide"),
    "awq other group": ("awq", None, {"group_size": 16}, r"scales is \[3, 64\]; needed: 6 groups of 16"),
    "gptq g_idx high": (
        "gptq-act-order",
        replaced("g_idx", first_is(2)),
        {},
        rf"{NAMED}\.g_idx has the group 2, outside 0\.\.1",
    ),
    "gptq g_idx low": ("gptq-act-order", replaced("g_idx", first_is(-1)), {}, rf"{NAMED}\.g_idx has the group -1"),
    "gptq g_idx shape": ("gptq-act-order", replaced("g_idx", lambda x: x[1:]), {}, rf"{NAMED}\.g_idx is \[63\]"),
    "gptq no g_idx": ("gptq-act-order", without("g_idx"), {}, rf"lacks {NAMED}\.g_idx, which act-order needs"),
    "gptq zero 16": (
        "gptq",
        replaced("qzeros", first_is(15)),
        {},
        rf"{NAMED}\.qzeros has the zero point 16, outside 0\.\.15",
    ),
    "gptq bits": ("gptq", replaced("qzeros", lambda x: x[:, :9]), {}, rf"{NAMED}\.qzeros is \[2, 9\] for 96 columns"),
    "gptq columns": ("gptq", replaced("qweight", lambda x: x[:, 8:]), {}, rf"{NAMED}\.scales is \[2, 96\]"),
    "pack no zeros": ("pack-4-asymmetric", without("weight_zero_point"), {}, rf"lacks {NAMED}\.weight_zero_point"),
    "pack no g_idx": ("pack-4-act-order", without("weight_g_idx"), {}, rf"lacks {NAMED}\.weight_g_idx"),
    "pack shape": ("pack-4", replaced("weight_shape", first_is(8)), {}, rf"{NAMED}\.weight_packed .* does not fit"),
    "pack nan": ("pack-4", replaced("weight_scale", first_is(float("nan"))), {}, rf"{NAMED}\.weight_scale is damaged"),
    "pack scales": ("pack-4", replaced("weight_scale", lambda x: x[:, :1]), {}, rf"{NAMED}\.weight_scale is \[96, 1\]"),
    "int no scale": ("int-8", without("weight_scale"), {}, rf"lacks {NAMED}\.weight_scale"),
    "int zeros": (
        "int-8-asymmetric",
        replaced("weight_zero_point", lambda x: x[1:]),
        {},
        rf"{NAMED}\.weight_zero_point is",
    ),
    "fp8 no scale": ("fp8-block", without("weight_scale_inv"), {}, rf"lacks {NAMED}\.weight_scale_inv"),
    "fp8 blocks": (
        "fp8-block",
        replaced("weight_scale_inv", lambda x: x[1:]),
        {},
        rf"{NAMED}\.weight_scale_inv is \[2, 2\]",
    ),
    "fp8 nan": ("fp8-block", replaced("weight", first_is(float("nan"))), {}, rf"{NAMED}\.weight is damaged"),
    "fp8 scale shape": (
        "fp8-tensor",
        replaced("weight_scale", lambda x: torch.ones(5)),
        {},
        rf"{NAMED}\.weight_scale is \[5\]",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tensors_are_refused_by_name(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    layout, change, config, message = DAMAGED[name]
    folder = edited(written[layout], tmp_path, **config)
    if change is not None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    with pytest.raises(UserError, match=message) as error:
        open_checkpoint(folder).tensor(f"{LAYER}.weight")
    assert "\n" not in str(error.value)


def test_config_groups_describe_modules_by_name_expression_and_class() -> None:
    config = compressed("pack-quantized", **PACK4)
    group = config["config_groups"]["group_0"]
    config["config_groups"]["named"] = {**group, "targets": ["re:.*down_proj", "lm_head"], "format": "int-quantized"}
    config["config_groups"]["named"]["weights"] = {**group["weights"], "num_bits": 8, "strategy": "channel"}
    scheme = read_scheme({"quantization_config": config})
    assert scheme is not None
    bits = {module: scheme.group_of(module).bits for module in ("m.down_proj", "m.up_proj", "lm_head")}
    assert bits == {"m.down_proj": 8, "m.up_proj": 4, "lm_head": 8}
    assert scheme.group_of("model.embed_tokens") is None
