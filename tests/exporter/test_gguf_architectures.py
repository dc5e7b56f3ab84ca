"""GGUF files of every architecture: names from the gguf package's map, metadata as llama.cpp's converters write it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFWriter

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.base import Checkpoint
from edgellama.exporter.checkpoint.gguf.architectures import ARCHITECTURES
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.checkpoint.synthetic import SyntheticCheckpoint
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.network.rope import rope_frequencies, rope_kinds, rope_tables
from support import checkpoints
from support.checkpoints import DEFAULTS, rope
from support.gguf_files import add_sizes, finish, interleave

CONTEXT = 64
MINICPM = {
    "model_type": "minicpm",
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 16,
    "tie_word_embeddings": True,
}
PANGU = {"model_type": "PanguEmbedded", "bias": True, "num_key_value_heads": 2}
NAMES = {
    "qwen3": "qwen3",
    "granite": "granite",
    "granite-tied": "granite",
    "hunyuan": "hunyuan-dense",
    "hunyuan-bias": "hunyuan-dense",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmo2-bias": "olmo2",
    "exaone": "exaone",
    "exaone4-full": "exaone4",
    **{name: "phi3" for name in checkpoints.ARCHITECTURES if name.startswith("phi3")},
    "gemma": "gemma",
}
# What files cannot say, as llama.cpp computes it: SmolLM3 has no rotary embedding in each fourth layer, EXAONE 4 has
# the published parameters of llama3, and the scale of Gemma's scores follows from the sizes.
EXAONE4 = {"model_type": "exaone4", "sliding_window": 16, "num_hidden_layers": 4, "sliding_window_pattern": "LLLG"}
GEMMA = {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
OWN = {
    "smollm3": ("smollm3", {"model_type": "smollm3", "num_hidden_layers": 5, "tie_word_embeddings": True}),
    "exaone4": (
        "exaone4",
        {
            **EXAONE4,
            "rope_parameters": rope(
                "llama3",
                theta=1e6,
                factor=16.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        },
    ),
    "gemma2": ("gemma2", {**GEMMA, "model_type": "gemma2"}),
    "gemma2-27b": ("gemma2", {**GEMMA, "model_type": "gemma2", "num_hidden_layers": 46, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3", {**GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 7}),
    "gemma3-linear": (
        "gemma3",
        {**GEMMA, "model_type": "gemma3_text", "final_logit_softcapping": 20.0}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6},
    ),
    "minicpm": ("minicpm", MINICPM),
    "pangu": ("pangu-embedded", PANGU),
    "pangu-plain": ("pangu-embedded", {**PANGU, "bias": False, "tie_word_embeddings": True}),
    "qwen3-yarn": (
        "qwen3",
        {"model_type": "qwen3", "rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=32)},
    ),
}
CASES = {name: (arch, checkpoints.ARCHITECTURES[name]) for name, arch in NAMES.items()} | OWN
INTERLEAVED = ("llama", "granite", "smollm3", "minicpm")


def network(config: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig.from_dict({"model_type": "llama", **DEFAULTS, **config})


def write(path: Path, arch: str, source: Checkpoint, *, drop: tuple[str, ...] = (), **keys: Any) -> None:
    """Write a GGUF file of the checkpoint. keys: replaces metadata of the architecture."""
    config, writer = source.config, GGUFWriter(path, arch)
    add_sizes(writer, config)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    for name in ("bos", "eos"):
        ids = getattr(config, f"{name}_token_id")
        getattr(writer, f"add_{name}_token_id")(ids if isinstance(ids, int) else ids[0])
    own_metadata(writer, arch, config)
    for key, value in keys.items():
        writer.kv_data[0].pop(f"{arch}.{key}", None)
        writer.add_uint32(f"{arch}.{key}", value)
    for name, values in stored_tensors(arch, source).items():
        if name not in drop:
            writer.add_tensor(name, values)
    finish(writer)


def own_metadata(writer: GGUFWriter, arch: str, config: LlamaConfig) -> None:
    scaling, theta = config.rope_scaling, config.rope_theta
    if scaling is not None and scaling.rope_type == "ntk_alpha":
        theta *= scaling.alpha ** (config.head_dim / (config.head_dim - 2))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
        writer.add_rope_scaling_orig_ctx_len(256 * 1024)
    if scaling is not None and scaling.rope_type in ("yarn", "linear"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.rope_type))
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.rope_type == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
    if arch not in ("gemma", "gemma2"):
        writer.add_rope_freq_base(theta)
    if arch in INTERLEAVED:
        writer.add_rope_dimension_count(config.head_dim)
    if arch == "phi3":
        writer.add_rope_dimension_count(config.rotary_dim)
        writer.add_sliding_window(config.sliding_window or 0)
        longrope = scaling is not None and scaling.rope_type == "longrope"
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings if longrope else CONTEXT)
    if arch == "granite":
        writer.add_attention_scale(config.attention_scale)
        writer.add_logit_scale(1 / config.logits_multiplier)
    if arch == "minicpm":
        writer.add_logit_scale(config.hidden_size / MINICPM["dim_model_base"])
    if arch in ("granite", "minicpm"):
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
    if arch in ("olmo2", "exaone4") and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if arch in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
        if config.attn_logit_softcapping:
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)


def stored_tensors(arch: str, source: Checkpoint) -> dict[str, np.ndarray]:
    config, found = source.config, {}
    (kind,) = (number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    values = {name: source.tensor(name) for name in source.names()}
    if arch == "phi3":
        values = joined(values)
    for name, tensor in values.items():
        projection = name.split(".")[-2]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(projection)
        if heads is not None and arch in INTERLEAVED:
            tensor = interleave(tensor, heads)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + np.float32(1)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        found[stored] = tensor
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "llama3":
        plain = rope_frequencies(replace(config, rope_scaling=None))[0]
        found["rope_freqs.weight"] = (plain / rope_frequencies(config)[0]).astype(np.float32)
    if scaling is not None and scaling.rope_type == "longrope":
        found["rope_factors_long.weight"] = np.asarray(scaling.long_factor, np.float32)
        found["rope_factors_short.weight"] = np.asarray(scaling.short_factor, np.float32)
    return found


def joined(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join q, k and v, and gate and up, as Phi-3's files do."""
    found: dict[str, list[np.ndarray]] = {}
    for name, tensor in values.items():
        for whole, parts in (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj"))):
            for part in parts:
                name = name.replace(f".{part}.", f".{whole}.")
        found.setdefault(name, []).append(tensor)
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_the_same_network(name: str, tmp_path: Path) -> None:
    arch, config = CASES[name]
    source = SyntheticCheckpoint(network(config), 1)
    write(tmp_path / "m.gguf", arch, source)
    read = open_checkpoint(tmp_path / "m.gguf")
    ours, theirs = read.config, source.config
    for kind in set(rope_kinds(theirs)):
        for one, other in zip(rope_tables(ours, CONTEXT, kind), rope_tables(theirs, CONTEXT, kind), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    same = {"rope_scaling": None, "rope_theta": 1.0, "pad_token_id": None}
    approximate = ("attention_scale", "embedding_multiplier", "residual_multiplier", "logits_multiplier")
    for field in (*approximate, "attn_logit_softcapping", "final_logit_softcapping", "rms_norm_eps"):
        expected = getattr(theirs, field)
        assert getattr(ours, field) == (None if expected is None else pytest.approx(expected, rel=1e-6)), field
        same[field] = getattr(theirs, field)
    assert replace(ours, **same) == replace(theirs, **same)
    assert read.names() == source.names()
    for tensor in source.names():
        np.testing.assert_allclose(read.tensor(tensor), source.tensor(tensor), atol=2e-7, err_msg=tensor)
        np.testing.assert_array_equal(read.rows(tensor, 3, 4), read.tensor(tensor)[3:7])


def test_every_architecture_is_covered() -> None:
    assert {arch for arch, _ in CASES.values()} == ARCHITECTURES.keys() - {"llama", "qwen2"}


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    arch, config = CASES["phi3"]
    source = SyntheticCheckpoint(network(config), 1)
    write(tmp_path / "m.gguf", arch, source, drop=("blk.0.attn_qkv.weight",))
    with pytest.raises(UserError, match=r"missing: model\.layers\.0\.self_attn\.q_proj\.weight"):
        open_checkpoint(tmp_path / "m.gguf")
    write(tmp_path / "m.gguf", arch, source, **{"feed_forward_length": source.config.intermediate_size // 2})
    with pytest.raises(UserError, match=r"surplus: model\.layers\.0\.mlp\.gate_up_proj\.weight"):
        open_checkpoint(tmp_path / "m.gguf")
    write(tmp_path / "m.gguf", "qwen3", SyntheticCheckpoint(network(CASES["qwen3"][1]), 1), expert_count=8)
    with pytest.raises(UserError, match=r"qwen3\.expert_count = 8"):
        open_checkpoint(tmp_path / "m.gguf")
