"""Safetensors checkpoints that transformers saved: they read back exactly, and every kind of damage is reported."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from transformers import LlamaConfig as HFLlamaConfig
from transformers import LlamaForCausalLM

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.checkpoint.presets import PRESETS
from edgellama.exporter.checkpoint.source import resolve

CONFIG: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
}


def save(folder: Path, dtype: torch.dtype = torch.float32, shard: str = "1GB", **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(HFLlamaConfig(**{**CONFIG, **config})).to(dtype)
    for parameter in model.parameters():  # norms and biases start as constants
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def edit_json(path: Path, **change: Any) -> None:
    value = json.loads(path.read_text())
    value.update(change)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 20},
    ],
)
def test_every_tensor_reads_back_exactly(tmp_path: Path, dtype: torch.dtype, config: dict[str, Any]) -> None:
    model = save(tmp_path, dtype, **config)
    checkpoint = open_checkpoint(tmp_path)
    expected = dict(model.named_parameters())  # a tied output matrix appears once, as the embedding
    assert set(checkpoint.names()) == set(expected)
    stored = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    for name, parameter in expected.items():
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == np.float32
        assert tensor.shape == checkpoint.shape(name) == tuple(parameter.shape)
        np.testing.assert_array_equal(tensor, parameter.detach().float().numpy())
        rows = checkpoint.rows(name, 3, 10)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, tensor[3:13])
        assert checkpoint.dtype(name) == stored
        assert checkpoint.raw(name) is None


def test_shards_read_as_one(tmp_path: Path) -> None:
    whole = save(tmp_path / "one")
    save(tmp_path / "many", shard="30KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    checkpoint = open_checkpoint(tmp_path / "many")
    for name, parameter in whole.named_parameters():
        np.testing.assert_array_equal(checkpoint.tensor(name), parameter.detach().numpy())


def test_opening_and_reading_one_tensor_does_not_load_the_file(tmp_path: Path) -> None:
    """Opening a 2.5 GB checkpoint (a sparse file) and reading one norm takes less than 100 MB of memory."""
    config = PRESETS["llama3.2-1b"].config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    from edgellama.exporter.checkpoint.base import expected_tensors

    header, end = {}, 0
    for name, shape in expected_tensors(config).items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.tensor("model.norm.weight").any()
    assert checkpoint.revision.startswith("sampled-sha256:")
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 100e6


def test_derived_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, path)
    assert "model.rotary_emb.inv_freq" not in open_checkpoint(tmp_path).names()


def test_missing_surplus_and_misshapen_tensors_are_one_error(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2, 2)
    tensors["model.norm.weight"] = torch.ones(49)
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        open_checkpoint(tmp_path)
    message = str(error.value)
    assert "2 missing: model.layers.1.mlp.up_proj.weight, lm_head.weight" in message
    assert "1 surplus: model.layers.7.mlp.up_proj.weight" in message
    assert "model.norm.weight [49], not [48]" in message


def test_a_long_list_is_shortened(tmp_path: Path) -> None:
    save(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=16)
    with pytest.raises(UserError, match=r"126 missing: .* and 114 more"):
        open_checkpoint(tmp_path)


def test_tied_output_matrix_may_be_stored_if_it_is_the_embedding(tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    assert "lm_head.weight" not in open_checkpoint(tmp_path).names()

    tensors["lm_head.weight"][3, 3] += 1
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"tie_word_embeddings.*lm_head.weight.*set tie_word_embeddings to false"):
        open_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)  # the remedy
    assert "lm_head.weight" in open_checkpoint(tmp_path).names()


@pytest.mark.parametrize("tied", [True, False])
def test_one_name_of_a_shared_matrix_is_enough(tmp_path: Path, tied: bool) -> None:
    """As safetensors' save_model stores it: the first name, and the other one in the metadata."""
    model = save(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    path.unlink()
    save_model(model, str(path), metadata={"format": "pt"})
    with safe_open(path, framework="pt") as stored:
        assert "model.embed_tokens.weight" not in stored.keys()  # noqa: SIM118
    edit_json(tmp_path / "config.json", tie_word_embeddings=tied)
    checkpoint = open_checkpoint(tmp_path)
    matrix = model.get_input_embeddings().weight.detach().numpy()
    for name in ("model.embed_tokens.weight", "lm_head.weight")[: 2 - tied]:
        np.testing.assert_array_equal(checkpoint.tensor(name), matrix)
        assert checkpoint.dtype(name) == "F32"
    assert ("lm_head.weight" in checkpoint.names()) != tied


def test_a_tied_head_alone_without_metadata(tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path)
    matrix = tensors["lm_head.weight"].numpy()
    np.testing.assert_array_equal(open_checkpoint(tmp_path).tensor("model.embed_tokens.weight"), matrix)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lacks model\.embed_tokens\.weight, and .*set tie_word_embeddings to true"):
        open_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)  # the remedy
    open_checkpoint(tmp_path)


@pytest.mark.parametrize("lost", [1, 1000, -40, -4])
def test_a_cut_file_is_refused_before_any_work(tmp_path: Path, lost: int) -> None:
    """The file is cut at its end, or (negative) to a few bytes of the header."""
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - lost if lost > 0 else -lost)
    with pytest.raises(UserError, match=r"model\.safetensors.*download it again") as error:
        open_checkpoint(tmp_path)
    if lost > 0:
        assert f"is truncated: it has {size - lost:,} bytes, its header describes {size:,}" in str(error.value)


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    save(tmp_path, shard="30KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"lacks {gone.name}, which model.safetensors.index.json names"):
        open_checkpoint(tmp_path)


def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path) -> None:
    save(tmp_path, shard="30KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    homes = list(index["weight_map"].values())  # some shards have several tensors
    name, home = next((name, home) for name, home in index["weight_map"].items() if homes.count(home) > 1)
    other = next(shard for shard in homes if shard != home)
    for weight_map, message in (
        ({**index["weight_map"], name: other}, f"'{name}' is in {home}, and the index says {other}"),
        ({k: v for k, v in index["weight_map"].items() if k != name}, f"'{name}' is in {home}.*does not list it"),
    ):
        path.write_text(json.dumps({**index, "weight_map": weight_map}))
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path)
    path.write_text(json.dumps(index))
    (tmp_path / other).write_bytes((tmp_path / home).read_bytes())
    with pytest.raises(UserError, match=f"{min(home, other)} and {max(home, other)} both have"):
        open_checkpoint(tmp_path)


def test_types_that_are_not_floats_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(48, dtype=torch.int8)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"model\.norm\.weight \(I8\); supported: F32, F16, BF16"):
        open_checkpoint(tmp_path)


def test_folders_without_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; give a Hugging Face folder or a \.gguf"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        open_checkpoint(tmp_path)
    HFLlamaConfig(**CONFIG).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor"):
        open_checkpoint(tmp_path)
    save(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        open_checkpoint(tmp_path)


OTHERS = {
    "adapter_config.json adapter_model.safetensors": r"is an adapter \(adapter_config\.json\), not a model\. Merge it",
    "params.json consolidated.00.pth tokenizer.model": r"original layout of its publisher .*Hugging Face version",
    "params.json consolidated.safetensors tekken.json": r"original layout of its publisher .*Hugging Face version",
    "config.json pytorch_model.bin": r"pytorch_model\.bin only, a pickle; save them as safetensors",
    "config.json pytorch_model.bin.index.json pytorch_model-00001-of-00002.bin": r"00002\.bin only, a pickle",
    "config.json model.onnx": r"has an ONNX model \(model\.onnx\).*Export the model that it was made of",
    "config.json onnx/model.onnx": r"has an ONNX model \(onnx/model\.onnx\)",
    "config.json openvino_model.xml openvino_model.bin": r"has an OpenVINO model",
    "config.json tf_model.h5": "has a TensorFlow model",
    "config.json flax_model.msgpack": "has a Flax model",
    "config.json manifest.json weights.safetensors": "is an artifact, the result of an export",
    "config.json output.safetensors": r"has output\.safetensors, but neither model\.safetensors nor",
    "README.md fp16/model.safetensors fp16/config.json": r"in a folder of it: MODEL must be that folder \(fp16\)",
    "a.Q4_0.gguf b.Q8_0.gguf": r"has 2 GGUF files: a\.Q4_0\.gguf, b\.Q8_0\.gguf\. Choose one.* MODEL=.*a\.Q4_0\.gguf",
    "config.json README.md": r"has neither model\.safetensors nor .*nor a GGUF file",
}


@pytest.mark.parametrize("names", OTHERS)
def test_other_folders_are_recognised_by_the_names_of_their_files(tmp_path: Path, names: str) -> None:
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=OTHERS[names]) as error:
        resolve(str(tmp_path))  # before any work
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=OTHERS[names]):
        open_checkpoint(tmp_path)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    for name in ("m.Q8_0.gguf", "mmproj-m.gguf", "README.md"):  # mmproj: the vision part of a multimodal model
        (tmp_path / name).write_bytes(b"GGUF")
    assert resolve(str(tmp_path)).path == tmp_path / "m.Q8_0.gguf"
    (tmp_path / "m.Q8_0.gguf").unlink()
    for part in (2, 1):
        (tmp_path / f"m-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)).path == tmp_path / "m-00001-of-00002.gguf"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "3" * 64 + "\nsize 17209920\n"


@pytest.mark.parametrize(
    "names",
    [
        *(["config.json"], ["model.safetensors"], ["tokenizer.json"], ["tokenizer.model"], ["chat_template.jinja"]),
        *(["m.gguf"], ["pytorch_model.bin"], ["model-00001-of-00002.safetensors", "tokenizer.json"]),
    ],
)
def test_git_lfs_pointers_are_named_with_the_command_that_fetches_the_files(tmp_path: Path, names: list[str]) -> None:
    save(tmp_path)
    for name in names:
        (tmp_path / name).write_text(POINTER)
    listed = ".*".join(map(re.escape, names))
    with pytest.raises(UserError, match=rf"Git LFS pointer.*{listed}|{listed} is a Git LFS pointer.*") as error:
        resolve(str(tmp_path))
    assert f"`git lfs pull` in {tmp_path}" in str(error.value)
    if names == ["m.gguf"]:
        with pytest.raises(UserError, match=r"m\.gguf is a Git LFS pointer"):
            resolve(str(tmp_path / "m.gguf"))


FILES = {
    b"PK\x03\x04data": "is a pickle of PyTorch, or another archive",
    b"\x80\x02}q\x00(": "is a pickle of PyTorch",
    b"tjgg\x03\0\0\0": "is a GGML file of before August 2023",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file of TensorFlow",
    b"hello world": r"neither a Hugging Face folder nor a \.gguf file \(it begins with b'hell'\)",
    b"": "neither a Hugging Face folder nor",
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_without_suffix_is_recognised_by_its_first_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(UserError, match=FILES[content]):
        resolve(str(tmp_path / "model"))
    (tmp_path / "model").write_bytes(b"GGUF" + content)
    assert resolve(str(tmp_path / "model")).path == tmp_path / "model"


def test_a_file_of_a_checkpoint_names_its_folder(tmp_path: Path) -> None:
    save(tmp_path)
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(UserError, match=rf"is a file of a checkpoint\. Give the folder: MODEL={tmp_path}"):
            resolve(str(tmp_path / name))
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "blob")
    with pytest.raises(UserError, match=r"blob is a safetensors file\. Give a folder with it as model\.safetensors"):
        resolve(str(tmp_path / "blob"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
        ({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}, "ExLlama"),
    ],
)
def test_weights_of_other_runtimes_are_named(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    save(tmp_path)
    edit_json(tmp_path / "config.json", **change)
    with pytest.raises(UserError, match=f"weights in the format of {what}, by its config.json"):
        resolve(str(tmp_path))


def test_revision_is_the_hubs_commit_or_follows_the_content(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    save(tmp_path / "models--a--b" / "snapshots" / commit)
    assert open_checkpoint(tmp_path / "models--a--b" / "snapshots" / commit).revision == commit

    save(tmp_path / "one")
    save(tmp_path / "same")
    save(tmp_path / "other", rms_norm_eps=1e-6)
    one, same, other = (open_checkpoint(tmp_path / name).revision for name in ("one", "same", "other"))
    assert one == same != other
    path = tmp_path / "same" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert open_checkpoint(tmp_path / "same").revision != one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_by_tensor(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    """The rows before and after it are read; so the check needs no other pass."""
    save(tmp_path, dtype, attention_bias=True)
    names = ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.bias", "lm_head.weight")
    tensors = load_file(tmp_path / "model.safetensors")
    for name in names:
        tensors[name].view(len(tensors[name]), -1)[5, -1] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    for name in names:
        with pytest.raises(UserError, match=rf"{name} is damaged: .*NaN or infinite values \(.* row 5\)"):
            checkpoint.tensor(name)
        assert np.isfinite(checkpoint.rows(name, 0, 5)).all()
        with pytest.raises(UserError, match=r"row 5\)"):
            checkpoint.rows(name, 5, 1)
