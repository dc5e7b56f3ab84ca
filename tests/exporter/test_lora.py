"""Adapters that are merged at export: equal to PEFT's own result, and refused with the remedy where they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellama.__main__ import main
from edgellama.artifact.manifest import Artifact
from edgellama.errors import UserError
from edgellama.exporter.checkpoint.merged import merged
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.export_options import ExportOptions, adapters
from edgellama.exporter.proof.float_reference import reference_logits
from support.adapters import FUSED, make_adapter, peft_logits
from support.checkpoints import CONFIGS

TOKENS = np.random.default_rng(3).integers(0, 256, 12, dtype=np.int32)
TIED = {"tie_word_embeddings": True}
BIASED = {"attention_bias": True, "mlp_bias": True}

# What PEFT's LoraConfig can say: base config, settings of the adapter.
ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all modules": ({}, {}),
    "two modules": ({}, {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 20}),
    "expression": ({}, {"target_modules": r".*layers\.[01]\.(self_attn\.[qv]|mlp\.up)_proj"}),
    "all-linear": ({}, {"target_modules": "all-linear", "r": 3}),
    "excluded": ({}, {"exclude_modules": ["o_proj", "layers.1.mlp.up_proj"]}),
    "layers": ({"num_hidden_layers": 3}, {"layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    "one layer": ({}, {"layers_to_transform": 1}),
    "patterns": (
        {},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 5}, "alpha_pattern": {"q_proj": 3, "up_proj": 1.5}},
    ),
    "rslora": ({}, {"use_rslora": True, "lora_alpha": 5}),
    "fan in": ({}, {"fan_in_fan_out": True}),
    "dora": ({}, {"use_dora": True}),
    "dora embedding": ({}, {"use_dora": True, "target_modules": ["embed_tokens", "v_proj", "lm_head"]}),
    "biases": (BIASED, {"bias": "all", "target_modules": ["q_proj", "gate_proj"]}),
    "biases of adapted modules": (BIASED, {"bias": "lora_only", "target_modules": ["q_proj", "gate_proj"]}),
    "bias of B": (BIASED, {"lora_bias": True}),
    "saved modules": ({}, {"modules_to_save": ["embed_tokens", "lm_head", "norm", "input_layernorm"]}),
    "embedding": ({}, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tied embedding": (TIED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": (TIED, {"target_modules": ["lm_head", "q_proj"]}),
    "tied and kept": (TIED, {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "tied saved embedding": (TIED, {"modules_to_save": ["embed_tokens"]}),
    "tied saved head": (TIED, {"modules_to_save": ["lm_head"]}),
    "tied saved and kept": (TIED, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "tokens": ({}, {"trainable_token_indices": [3, 7, 250]}),
    "tied tokens": (TIED, {"trainable_token_indices": {"embed_tokens": [250, 3]}}),
    "initialised": ({}, {"init_lora_weights": "gaussian"}),
    "phi3": (CONFIGS["phi3"], {"target_modules": FUSED}),
    "phi3 dora": (CONFIGS["phi3-partial"], {"target_modules": FUSED, "use_dora": True}),
    "gemma3": (CONFIGS["gemma3"], {}),
    "gemma2 tied head": (CONFIGS["gemma2"], {"target_modules": ["embed_tokens", "o_proj"]}),
    "granite": (CONFIGS["granite-tied"], {"target_modules": ["o_proj", "down_proj", "lm_head"]}),
    "olmo2": (CONFIGS["olmo2-bias"], {"modules_to_save": ["q_norm", "post_feedforward_layernorm"]}),
}


def merged_logits(base: Path, *given: tuple[Path, float]) -> np.ndarray:
    checkpoint = merged(open_checkpoint(base), [(str(folder), scale) for folder, scale in given])
    return reference_logits(checkpoint, TOKENS, list(range(len(TOKENS))))[0]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_adapter_equals_peft(name: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    config, settings = ADAPTERS[name]
    base = tiny_checkpoint(**config)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    expected = peft_logits(base, [(adapter, 1.0)], [TOKENS.tolist()])[0]
    assert error(merged_logits(base), expected) > 0.01  # the adapter has an effect
    assert error(merged_logits(base, (adapter, 1.0)), expected) < 1e-4


def test_several_adapters_with_scales_equal_peft(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_checkpoint()
    one = make_adapter(base, tmp_path / "one", seed=1)
    two = make_adapter(base, tmp_path / "two", seed=2, r=2, target_modules=["q_proj", "up_proj"])
    given = [(one, 0.5), (two, -1.5)]
    assert error(merged_logits(base, *given), peft_logits(base, given, [TOKENS.tolist()])[0]) < 1e-4


def test_rows_of_a_merged_weight_are_those_of_the_whole(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_checkpoint(**CONFIGS["phi3"])
    settings: dict[str, Any] = {"target_modules": [*FUSED, "embed_tokens"], "use_dora": True}
    checkpoint = merged(open_checkpoint(base), [(str(make_adapter(base, tmp_path / "a", **settings)), 1.0)])
    for name in checkpoint.names():
        whole = checkpoint.tensor(name)
        np.testing.assert_allclose(checkpoint.rows(name, 5, 7), whole[5:12], rtol=1e-5, atol=1e-6)
        assert checkpoint.shape(name) == whole.shape


def test_an_untouched_weight_keeps_its_type(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_checkpoint()
    plain = open_checkpoint(base)
    adapter = make_adapter(base, tmp_path / "a", target_modules=["q_proj"], layers_to_transform=[0])
    checkpoint = merged(plain, [(str(adapter), 1.0)])
    different = [name for name in plain.names() if not np.array_equal(plain.tensor(name), checkpoint.tensor(name))]
    assert different == ["model.layers.0.self_attn.q_proj.weight"]


def test_the_export_merges_and_records_adapters(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The artifact passes its proof, `verify` merges the same adapters again, and a changed adapter is noticed."""
    from support.checkpoints import export_all
    from support.child import run_python

    base = tiny_checkpoint(**TIED)
    one = make_adapter(base, tmp_path / "one", target_modules=["embed_tokens", "q_proj", "down_proj"])
    two = make_adapter(base, tmp_path / "two", seed=2)
    job = {"model": str(base), "out": tmp_path / "artifact", "target": "cpu", "weights": "fp32", "context": 32}
    export_all([{**job, "buckets": [16], "lora": [[str(one), 1.0], [str(two), 0.5]]}])
    manifest = Artifact.open(tmp_path / "artifact").manifest
    assert [(adapter.folder, adapter.scale) for adapter in manifest.source.adapters] == [(str(one), 1), (str(two), 0.5)]
    assert manifest.format_version == 2
    assert manifest.name.endswith("-one-two")
    assert manifest.config["tie_word_embeddings"] is False
    code = (
        "import json, sys, numpy as np\nfrom edgellama import LlamaForCausalLM\n"
        "model = LlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokens = np.array([json.loads(sys.argv[2])])\n"
        "n = np.array([tokens.shape[1]])\n"
        "print(json.dumps(model.engine.forward(tokens, np.zeros(1, int), n)[0].tolist()))"
    )
    found = np.array(run_python(code, str(tmp_path / "artifact"), json.dumps(TOKENS.tolist())))
    expected = peft_logits(base, [(one, 1.0), (two, 0.5)], [TOKENS.tolist()])[0, -1]
    assert error(found, expected) < 1e-4
    assert main(["verify", str(tmp_path / "artifact")]) == 0
    make_adapter(base, two, seed=3)
    assert main(["verify", str(tmp_path / "artifact")]) == 2


@pytest.fixture
def base(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])


def edit_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r"type 'IA3'; supported: LORA. Merge it with PEFT"),
        ({"peft_type": "LOHA"}, r"type 'LOHA'; supported: LORA"),
        ({"peft_type": "PROMPT_TUNING"}, r"type PROMPT_TUNING, which is not in the weights .* Train a LoRA"),
        ({"use_qalora": True}, r"use_qalora is True, which this release does not know"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication is \[\[0, 2\]\], which"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens is \[1\], which"),
        ({"invented_later": 3}, r"invented_later is 3, which this release does not know"),
        ({"init_lora_weights": "pissa_niter_16"}, r"init_lora_weights is 'pissa_niter_16': .*_weight_conversion"),
        ({"r": 0}, r"r is 0; needed: a whole number above 0"),
        ({"r": "8"}, r"r is '8'; needed"),
        ({"lora_alpha": None}, r"lora_alpha is None; needed: a number"),
        ({"target_modules": "(q_proj"}, r"target_modules is '\(q_proj'; needed: a regular expression"),
        ({"target_modules": 3}, r"target_modules is 3; needed: a list of names"),
        ({"rank_pattern": {"(": 3}}, r"rank_pattern is '\('; needed: a regular expression"),
        ({"layers_pattern": ["(", "x"], "layers_to_transform": [0]}, r"layers_pattern is '\('; needed: a regular expr"),
        ({"bias": "some"}, r"bias is 'some'; needed: one of none, all, lora_only"),
        ({"use_dora": 1}, r"use_dora is 1; needed: true or false"),
        ({"use_dora": True}, r"lacks model\.layers\.\d\.self_attn\.[qv]_proj\.lora_magnitude_vector"),
        ({"r": 3}, r"lora_A\.weight is \[4, 64\], needed: \[3, 64\]"),
        ({"target_modules": ["q_proj", "v_proj", "up_proj"]}, r"lacks the matrices of model.layers.0.mlp.up_proj, mod"),
    ],
)
def test_a_config_that_cannot_be_merged_is_refused(
    base: Path, adapter: Path, changes: dict[str, object], message: str
) -> None:
    edit_config(adapter, **changes)
    with pytest.raises(UserError, match=message):
        merged(open_checkpoint(base), [(str(adapter), 1.0)])


def test_an_adapter_of_another_model_is_refused(
    adapter: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    other = tiny_checkpoint(hidden_size=32)
    with pytest.raises(UserError, match=r"does not fit .*lora_A.weight is \[4, 64\], needed: \[4, 32\]\. Give the mod"):
        merged(open_checkpoint(other), [(str(adapter), 1.0)])
    deeper = make_adapter(tiny_checkpoint(num_hidden_layers=3), tmp_path / "deeper")
    with pytest.raises(UserError, match=r"14 of its tensors belong to no weight .*layers\.2\.mlp\.down_proj\.lora_A"):
        merged(open_checkpoint(tiny_checkpoint()), [(str(deeper), 1.0)])


def test_damaged_and_foreign_files_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    def refused(message: str, folder: Path = adapter) -> None:
        with pytest.raises(UserError, match=message):
            merged(open_checkpoint(base), [(str(folder), 1.0)])

    refused("someone/adapter is no folder.*hf download someone/adapter", Path("someone/adapter"))
    refused("has no adapter_config.json: it is a model, not an adapter: give it as MODEL", base)
    tensors = adapter / "adapter_model.safetensors"
    values = load_file(tensors)
    first = next(iter(values))
    save_file({**values, first: values[first] * np.float32("nan")}, tensors)
    checkpoint = merged(open_checkpoint(base), [(str(adapter), 1.0)])
    with pytest.raises(UserError, match="NaN or infinite values"):
        for name in checkpoint.names():
            checkpoint.tensor(name)
    save_file({**values, first: values[first].astype(np.int8)}, tensors)
    refused("is int8; needed: float32, float16 or bfloat16")
    save_file({name: value for name, value in values.items() if name != first}, tensors)
    refused(r"lacks model\.layers\.\d\.self_attn\.[qv]_proj\.lora_[AB]")
    tensors.write_bytes(tensors.read_bytes()[:-5])
    refused("ends outside the file")
    tensors.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused("is a Git LFS pointer")
    tensors.unlink()
    refused("has no adapter_model.safetensors")
    (adapter / "adapter_model.bin").write_bytes(b"PK")
    refused("adapter_model.bin only, a pickle.*safe_serialization=True")


def test_two_adapters_that_replace_one_weight_are_refused(base: Path, tmp_path: Path) -> None:
    folders = [make_adapter(base, tmp_path / str(i), seed=i, modules_to_save=["lm_head"]) for i in range(2)]
    with pytest.raises(UserError, match=r"two adapters replace lm_head\.weight"):
        merged(open_checkpoint(base), [(str(folder), 1.0) for folder in folders])


def test_names_of_other_writers_are_read(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The name of the adapter in the keys, as older releases and other programs write it; half floats."""
    import ml_dtypes

    expected = merged_logits(base, (adapter, 1.0))
    values = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace(".weight", ".default.weight"): value for name, value in values.items()}
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    save_file(renamed, other / "adapter_model.safetensors")
    assert np.array_equal(merged_logits(base, (other, 1.0)), expected)
    save_file(
        {name: value.astype(ml_dtypes.bfloat16) for name, value in values.items()}, other / "adapter_model.safetensors"
    )
    assert 0 < error(merged_logits(base, (other, 1.0)), expected) < 0.05


def test_the_option_takes_folders_and_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adapters("style") == (("style", 1.0),)
    assert adapters("a:0.5,b,/x/c:-2") == (("a", 0.5), ("b", 1.0), ("/x/c", -2.0))
    assert adapters("dir:name") == (("dir:name", 1.0),)
    options = ExportOptions("llama3-8b", lora=(("style", 1.0), ("facts", 0.5)))
    assert options.folder().name == "llama3-8b-style-facts-cpu-int8"
    with pytest.raises(UserError, match="LORA adapts the weights of a checkpoint, and SYNTHETIC=1"):
        ExportOptions("llama3-8b", lora=(("style", 1.0),), synthetic=True)
    with pytest.raises(UserError, match="WEIGHTS=q4_0 keeps the blocks"):
        ExportOptions("x.gguf", lora=(("style", 1.0),), weights="q4_0")
    for wrong in ("", "a,,b", "a:0", "a:nan"):
        with pytest.raises(SystemExit):
            main(["export", "x", "--lora", wrong])
    assert "is no adapter; needed: FOLDER or FOLDER:SCALE" in capsys.readouterr().err
    assert main(["artifact-folder", "llama3-8b", "--lora", "a:2", "--lora", "b,c"]) == 0
    assert capsys.readouterr().out.strip() == "artifacts/llama3-8b-a-b-c-cpu-int8"
