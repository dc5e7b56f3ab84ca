"""Writes small GGUF files, from a transformers model or with given metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers import LlamaConfig as HFLlamaConfig
from transformers import LlamaForCausalLM, PreTrainedModel

Kind = GGMLQuantizationType
K_QUANTS = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
I_QUANTS = (
    *(Kind.IQ4_NL, Kind.IQ4_XS, Kind.IQ3_S, Kind.IQ3_XXS, Kind.IQ2_S, Kind.IQ2_XS, Kind.IQ2_XXS),
    *(Kind.IQ1_S, Kind.IQ1_M),
    *(Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4, Kind.NVFP4),
)
# Byte offsets of the float16 scales in a block. Other bytes may be random; a random scale could be NaN.
SCALES = {
    **{Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)},
    **dict.fromkeys(I_QUANTS[:8], (0,)),
    **{Kind.TQ1_0: (52,), Kind.TQ2_0: (64,)},
}
# Byte offset and value of the other scales: an upper half of float16 in 4 bits, E8M0, and four E4M3.
SCALE_BYTES = {Kind.IQ1_M: (55, 0x2A), Kind.MXFP4: (0, 0x7A), Kind.NVFP4: (slice(0, 4), 0x38)}
QUANTS = (Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, *K_QUANTS, *I_QUANTS)
CONFIG: dict[str, Any] = {
    **{"vocab_size": 40, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_llama(**config: Any) -> LlamaForCausalLM:
    """Returns a random Llama of 2 layers, with biases and norms that are random too."""
    torch.manual_seed(1)
    made = LlamaForCausalLM(HFLlamaConfig(**{**CONFIG, **config}))
    for parameter in made.parameters():  # norms and biases start as constants
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def gguf_name(name: str) -> str:
    """Returns the name in a GGUF file for a name of Hugging Face's."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, inner = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[inner]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns the row order of q and k in a "llama" GGUF file: row i of a head's first half, then of its second."""
    out = np.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = rows[head * size + i]
            out[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return out


def random_blocks(kind: Kind, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Returns random blocks, uint8 [rows, bytes per row]; the gguf package has no quantizer for K-quants and others."""
    rng = np.random.default_rng(seed)
    block, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    for at in SCALES.get(kind, ()):
        scale = rng.uniform(0.01, 0.1, (*blocks.shape[:2], 1)).astype(np.float16)
        blocks[:, :, at : at + 2] = scale.view(np.uint8)
    if kind in SCALE_BYTES:
        place, value = SCALE_BYTES[kind]
        blocks[:, :, place] = value
    return blocks.reshape(shape[0], -1)


def add_sizes(writer: GGUFWriter, config: Any) -> None:
    """Adds the sizes of a network, from a transformers config or a LlamaConfig."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_model_metadata(writer: GGUFWriter, config: Any) -> None:
    """Adds the metadata of a transformers config."""
    add_sizes(writer, config)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    writer.add_rope_dimension_count(head_dim)
    if head_dim != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)


def write_model(
    path: Path,
    model: PreTrainedModel,
    kind: Kind = Kind.F32,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    drop: tuple[str, ...] = (),
    arch: str = "llama",
    split: int = 0,
) -> dict[str, np.ndarray]:
    """Writes the model's matrices as `kind` and its vectors as F32.

    Returns the stored values by Hugging Face name, with the rows in Hugging Face order.

    metadata: keys to add or to replace; None removes a key.
    split: most tensors of a file; the file is split, then, as the gguf package does it. 0: one file.
    """
    config = model.config
    writer = GGUFWriter(path, arch, split_max_tensors=split)
    add_model_metadata(writer, config)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            add(writer, key, value)
    stored = {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        tensor = parameter.detach().float().numpy()
        matrix = kind if tensor.ndim == 2 else Kind.F32
        data = random_blocks(kind, tensor.shape, seed) if matrix in K_QUANTS + I_QUANTS else quantize(tensor, matrix)
        stored[name] = data
        projection = name.split(".")[-2]
        out = interleave(data, heads[projection]) if projection in heads and arch == "llama" else data
        if gguf_name(name) not in drop:
            writer.add_tensor(gguf_name(name), out, raw_dtype=matrix)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    finish(writer)
    return stored


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds one key with the type that fits the value."""
    adders = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    adders.get(type(value), writer.add_array)(key, value)


def finish(writer: GGUFWriter) -> None:
    """Writes the file and closes it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
