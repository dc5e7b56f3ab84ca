"""Reads a checkpoint as an export does, and compares with what independent readers find in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from torture.outcomes import Outcome

# Settings of a config.json that decide the logits, with the values that transformers takes if the file has none.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")),
    **dict.fromkeys(("max_position_embeddings", "rms_norm_eps", "model_type")),
    **{"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
}
TEXT = "The quick brown fox, \u00e9\U0001f642 the 12th."


def import_readers() -> None:
    """Import what the cases need, so that the children of this process have it already."""
    import safetensors
    from gguf import GGUFReader
    from transformers import AutoTokenizer, LlamaConfig, LlamaTokenizer, PreTrainedTokenizerFast

    import edgellama.exporter.checkpoint.gguf.checkpoint
    import edgellama.exporter.checkpoint.safetensors
    import edgellama.exporter.export_options

    assert AutoTokenizer and LlamaConfig and LlamaTokenizer and PreTrainedTokenizerFast
    assert GGUFReader and safetensors and edgellama.exporter.export_options


def is_right(checkpoint: Path, out: Path) -> Outcome:
    """Do all that an export does with a checkpoint, except for tracing graphs, and compare. Raises what that raises."""
    from edgellama.artifact.manifest_checks import MOST_TOKENS
    from edgellama.exporter.checkpoint.open import open_model
    from edgellama.exporter.export_options import ExportOptions, shape_of
    from edgellama.exporter.network.rope import rope_tables
    from edgellama.exporter.writing.companions import write_companions

    options = ExportOptions(model=str(checkpoint), target="cpu", buckets=())
    _, opened = open_model(options.model, None)
    shape, _ = shape_of(options, opened.config)
    files = opened.tokenizer_files()
    out.mkdir()
    write_companions(out, files, opened.config.vocab_size, opened.path)
    rope_tables(opened.config, shape.context)
    tensors = {name: opened.tensor(name) for name in opened.names()}
    assert opened.revision and all(0 <= number < MOST_TOKENS for number in opened.eos_token_id())
    (out / "config.json").write_text(json.dumps(opened.config.to_dict()))
    problem = difference(checkpoint, out, tensors)
    return Outcome("harmless") if problem is None else Outcome("silent", f"accepted, and {problem}")


def difference(checkpoint: Path, out: Path, tensors: dict[str, np.ndarray]) -> str | None:
    """Return how what would be exported differs from the checkpoint; None if it does not."""
    from transformers import AutoTokenizer

    from edgellama.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(out)
    ids = tokenizer.encode(TEXT)
    if checkpoint.is_dir():
        stored = folder_tensors(checkpoint)
        if ids != AutoTokenizer.from_pretrained(checkpoint)(TEXT).input_ids:
            return "a text has other tokens"
        found = json.loads((checkpoint / "config.json").read_text("utf-8-sig"))
        if (problem := other_config(found, json.loads((out / "config.json").read_text()))) is not None:
            return problem
    else:
        stored = gguf_tensors(checkpoint)
    differing = [name for name, tensor in tensors.items() if not np.array_equal(tensor, stored[name])]
    return f"the tensor {differing[0]} differs" if differing else None


def folder_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a Hugging Face folder as the safetensors library reads them, by its index if it has one."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.exists():
        with safe_open(single, "numpy") as file:
            return {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    found = {}
    for name, shard in json.loads(index.read_text())["weight_map"].items():
        with safe_open(folder / shard, "numpy") as file:
            if name in file.keys():  # noqa: SIM118
                found[name] = file.get_tensor(name).astype(np.float32)
    return found


def gguf_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a GGUF file as the gguf package reads them, by Hugging Face name, q and k in its order."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from edgellama.exporter.checkpoint.gguf.checkpoint import to_hf_name

    reader, found = GGUFReader(path), {}
    heads = {
        "attn_q": int(reader.get_field("llama.attention.head_count").contents()),
        "attn_k": int(reader.get_field("llama.attention.head_count_kv").contents()),
    }
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in tensor.shape[::-1]])
        part = tensor.name.split(".")[-2]
        if part in heads:  # stored in pairs (0, 1), (2, 3), ...; Hugging Face has the two halves of each head
            rows = values.reshape(heads[part], -1, 2, *values.shape[1:])
            values = rows.swapaxes(1, 2).reshape(values.shape)
        found[to_hf_name(tensor.name, "llama")] = values
    return found


def other_config(found: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """Return the first setting of a config.json that the exporter has read otherwise, or None.

    Args:
        found: the file.
        ours: what the exporter writes into the artifact's config.json.
    """
    given = {name: value for name, value in found.items() if value is not None}
    heads = given["num_attention_heads"]
    defaults = {**DEFAULTS, "num_key_value_heads": heads, "head_dim": given["hidden_size"] // heads}
    if "model_type" not in given:  # the architecture, which is the only other hint, says it
        given["model_type"] = given["architectures"][0].removesuffix("ForCausalLM").lower()
    if given["model_type"] == "mistral":
        defaults.update(num_key_value_heads=8, sliding_window=None if "sliding_window" in found else 4096)
    rope = given.get("rope_scaling") or given.get("rope_parameters") or {}
    rope = {name: value for name, value in rope.items() if value is not None}
    kind = rope.pop("rope_type", None) or rope.get("type", "default")
    rope.pop("type", None)
    expected = {name: given.get(name, default) for name, default in defaults.items()}
    expected["rope_theta"] = rope.pop("rope_theta", given.get("rope_theta", 10000.0))
    stored = ours["rope_scaling"] or {"rope_type": "default"}
    if stored["rope_type"] != kind:
        return f"the rope is {stored['rope_type']}, not {kind}"
    outer = given.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = outer
    pairs = [*((name, ours.get(name), value) for name, value in expected.items() if name in ours or value)]
    pairs += [(f"rope {name}", stored.get(name), value) for name, value in rope.items()]
    differing = [(name, mine, value) for name, mine, value in pairs if mine != value]
    return f"{differing[0][0]} is {differing[0][1]!r}, not {differing[0][2]!r}" if differing else None
