"""GGUF checkpoints: every quantization, the row order of q and k, the config, and every kind of damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers import LlamaConfig as HFLlamaConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.gguf.checkpoint import readable
from edgellama.exporter.checkpoint.gguf.file import GGUFFile
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.checkpoint.presets import PRESETS
from edgellama.exporter.network.config import LlamaConfig, RopeScaling
from edgellama.exporter.network.rope import rope_frequencies
from support.gguf_files import (
    CONFIG,
    QUANTS,
    Kind,
    gguf_name,
    tiny_llama,
    write_model,
)


def qwen2(**config: Any) -> PreTrainedModel:
    torch.manual_seed(2)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **{**CONFIG, **config}))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def small() -> LlamaForCausalLM:
    return tiny_llama(num_hidden_layers=1)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, *QUANTS], ids=lambda kind: kind.name)
def test_every_type_dequantizes_in_hugging_face_order(tmp_path: Path, small: LlamaForCausalLM, kind: Kind) -> None:
    stored = write_model(tmp_path / "m.gguf", small, kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert set(checkpoint.names()) == set(stored)
    for name, data in stored.items():
        shape = tuple(small.get_parameter(name).shape)
        assert checkpoint.shape(name) == shape
        tensor = checkpoint.tensor(name)
        assert (tensor.dtype, tensor.shape) == (np.float32, shape)
        quant = kind if len(shape) == 2 else Kind.F32
        assert checkpoint.dtype(name) == quant.name
        np.testing.assert_array_equal(tensor, dequantize(data, quant).reshape(shape))
        for first, count in ((3, 10), (shape[0] - 1, 1)):
            np.testing.assert_array_equal(checkpoint.rows(name, first, count), tensor[first : first + count])
        if kind in QUANTS and len(shape) == 2:
            raw = checkpoint.raw(name)
            assert raw is not None
            assert raw.kind == kind.name
            np.testing.assert_array_equal(raw.blocks, data)
            some = checkpoint.raw(name, 5, 7)
            assert some is not None
            np.testing.assert_array_equal(some.blocks, data[5:12])
        else:
            assert checkpoint.raw(name) is None


def test_raw_blocks_mean_what_the_formats_say(tmp_path: Path, small: LlamaForCausalLM) -> None:
    """Q8_0: a float16 scale, 32 int8. Q4_0: a float16 scale, 16 bytes of two nibbles, low ones first, minus 8."""
    for kind in (Kind.Q8_0, Kind.Q4_0):
        write_model(tmp_path / "m.gguf", small, kind)
        checkpoint = open_checkpoint(tmp_path / "m.gguf")
        name = "model.layers.0.self_attn.k_proj.weight"
        raw = checkpoint.raw(name)
        assert raw is not None
        blocks = raw.blocks.reshape(len(raw.blocks), -1, 34 if kind == Kind.Q8_0 else 18)
        scale = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
        codes = blocks[:, :, 2:]
        if kind == Kind.Q8_0:
            values = codes.copy().view(np.int8).astype(np.float32)
        else:
            values = np.concatenate([codes & 15, codes >> 4], axis=2).astype(np.float32) - 8
        np.testing.assert_array_equal((scale * values).reshape(checkpoint.shape(name)), checkpoint.tensor(name))


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 8},
        {"head_dim": 64, "num_key_value_heads": 1},
    ],
)
def test_config_and_tensors_come_back(tmp_path: Path, config: dict[str, Any]) -> None:
    made = tiny_llama(**config)
    write_model(tmp_path / "m.gguf", made)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    expected = LlamaConfig.from_dict({**made.config.to_dict(), "bos_token_id": None, "eos_token_id": None})
    assert checkpoint.config == expected
    tensors = {name: torch.from_numpy(checkpoint.tensor(name)) for name in checkpoint.names()}
    again = LlamaForCausalLM(HFLlamaConfig(**checkpoint.config.to_dict())).eval()
    again.load_state_dict(tensors, strict=not config.get("tie_word_embeddings", False))
    again.tie_weights()
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(again(tokens).logits, made(tokens).logits, rtol=0, atol=0)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 8}])
def test_qwen2_comes_back_with_its_biases_and_without_a_window(tmp_path: Path, config: dict[str, Any]) -> None:
    made = qwen2(**config)
    write_model(tmp_path / "m.gguf", made, arch="qwen2")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config == LlamaConfig.from_dict({**made.config.to_dict(), "bos_token_id": None})
    assert "model.layers.0.self_attn.q_proj.bias" in checkpoint.names()
    for name in checkpoint.names():
        np.testing.assert_array_equal(checkpoint.tensor(name), made.get_parameter(name).detach().numpy())
    write_model(tmp_path / "m.gguf", made, arch="qwen2", drop=("blk.1.attn_v.bias",))
    with pytest.raises(UserError, match=r"1 missing: model\.layers\.1\.self_attn\.v_proj\.bias"):
        open_checkpoint(tmp_path / "m.gguf")
    write_model(tmp_path / "m.gguf", made, arch="qwen2", metadata={"qwen2.attention.sliding_window": 32})
    with pytest.raises(UserError, match=r"qwen2\.attention\.sliding_window = 32"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_agrees_with_transformers_own_gguf_reader(tmp_path: Path, arch: str) -> None:
    """transformers maps names and rows independently; the file is quantized."""
    made = tiny_llama() if arch == "llama" else qwen2()
    tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": list("abcdefgh")}
    write_model(tmp_path / "m.gguf", made, Kind.Q8_0, metadata=tokens, arch=arch)
    theirs = load_gguf_checkpoint(tmp_path / "m.gguf", return_tensors=True, model_to_load=made)["tensors"]
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert set(theirs) == set(checkpoint.names())
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), tensor.numpy())


def test_rope_scaling_from_metadata(tmp_path: Path, small: LlamaForCausalLM) -> None:
    def scaling(**keys: Any) -> RopeScaling | None:
        named = {f"llama.rope.{key}": value for key, value in keys.items()}
        write_model(tmp_path / "m.gguf", small, metadata={k.replace("__", "."): v for k, v in named.items()})
        return open_checkpoint(tmp_path / "m.gguf").config.rope_scaling

    assert scaling(scaling__type="none") is None
    assert scaling(scaling__type="linear", scaling__factor=4.0) == RopeScaling("linear", 4.0)
    assert scaling(scale_linear=2.0) == RopeScaling("linear", 2.0)
    yarn = {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 16}
    assert scaling(**yarn) == RopeScaling("yarn", 4.0, original_max_position_embeddings=16)
    found = scaling(**yarn, scaling__yarn_attn_factor=0.5, scaling__yarn_beta_fast=16.0)
    assert found is not None
    assert found.beta_fast == 16.0
    assert found.attention_factor == pytest.approx(0.5 * (1 + 0.1 * np.log(4)))
    with pytest.raises(UserError, match=r"scaling\.type = 'longrope'"):
        scaling(scaling__type="longrope")


@pytest.mark.parametrize(("name", "factor"), [("llama3.1-8b", 8.0), ("llama3.2-1b", 32.0)])
def test_llama3_scaling_is_read_off_the_factors(tmp_path: Path, name: str, factor: float) -> None:
    preset = PRESETS[name].config
    made = tiny_llama(
        head_dim=preset.head_dim, rope_theta=preset.rope_theta, num_hidden_layers=1, max_position_embeddings=131072
    )
    plain = LlamaConfig.from_dict({**preset.to_dict(), "rope_scaling": None})
    divisors = (rope_frequencies(plain)[0] / rope_frequencies(preset)[0]).astype(np.float32)
    write_model(tmp_path / "m.gguf", made, extra={"rope_freqs.weight": divisors})
    assert open_checkpoint(tmp_path / "m.gguf").config.rope_scaling == preset.rope_scaling

    write_model(tmp_path / "m.gguf", made, extra={"rope_freqs.weight": np.ones_like(divisors)})
    assert open_checkpoint(tmp_path / "m.gguf").config.rope_scaling is None

    write_model(tmp_path / "m.gguf", made, extra={"rope_freqs.weight": divisors[1:]})
    with pytest.raises(UserError, match=r"rope_freqs\.weight is F32 .*; needed: F32"):
        open_checkpoint(tmp_path / "m.gguf")
    write_model(tmp_path / "m.gguf", made, extra={"rope_freqs.weight": divisors**2})
    with pytest.raises(UserError, match=r"rope_freqs\.weight is not the scaling of Llama 3\.1.*Hugging Face"):
        open_checkpoint(tmp_path / "m.gguf")


REFUSED = [
    ({"llama.expert_count": 8}, "expert_count = 8"),
    ({"llama.logit_scale": 2.0}, "logit_scale = 2.0.*mathematics"),
    ({"llama.rope.dimension_count": 16}, "dimension_count = 16"),
    ({"llama.attention.value_length": 16}, "value_length = 16"),
    ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv differs from layer to layer"),
    ({"llama.block_count": None}, "lacks the metadata key llama.block_count"),
    ({"llama.attention.head_count": 0, "llama.rope.dimension_count": None}, "num_attention_heads = 0"),
    ({"llama.attention.head_count": "8"}, "head_count = '8' must be of type int"),
    ({"llama.block_count": 2**31}, "num_hidden_layers = 2147483648 in the config must be 1 to 10,000"),
    ({"general.alignment": 0}, "general.alignment = 0"),
    ({"split.count": 3}, "one of 3 parts.*Rename them, or merge"),
    ({"llama.vocab_size": 41}, r"token_embd|embed_tokens.weight \[40, 256\], not \[41, 256\]"),
]


@pytest.mark.parametrize(("metadata", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_metadata_that_changes_the_mathematics_is_refused(
    tmp_path: Path, small: LlamaForCausalLM, metadata: dict[str, Any], message: str
) -> None:
    write_model(tmp_path / "m.gguf", small, metadata=metadata)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "m.gguf")


def test_missing_and_surplus_tensors_are_listed(tmp_path: Path, small: LlamaForCausalLM) -> None:
    surplus = {"blk.0.attn_q_norm.weight": np.ones(4, np.float32)}
    write_model(tmp_path / "m.gguf", small, extra=surplus, drop=("blk.0.ffn_up.weight",))
    with pytest.raises(UserError, match=r"1 missing: model\.layers\.0\.mlp\.up_proj\.weight; 1 surplus: blk\.0\.attn"):
        open_checkpoint(tmp_path / "m.gguf")


def test_other_architectures_and_types_are_refused(tmp_path: Path, small: LlamaForCausalLM) -> None:
    write_model(tmp_path / "m.gguf", small, arch="mamba")
    with pytest.raises(UserError, match=r"architecture 'mamba'.*'llama', 'qwen2', 'qwen3'"):
        open_checkpoint(tmp_path / "m.gguf")
    write_model(tmp_path / "m.gguf", small, extra={"output_norm.weight": np.ones(256)}, drop=("output_norm.weight",))
    with pytest.raises(UserError, match=r"model\.norm\.weight \(F64\); supported: F32, F16, Q4_0, .*IQ4_XS"):
        open_checkpoint(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(UserError, match="not a GGUF file"):
        open_checkpoint(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        open_checkpoint(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x00\x00\x00\x03" + bytes(100))
    with pytest.raises(UserError, match=r"version 0x3000000.*little-endian"):
        open_checkpoint(tmp_path / "m.gguf")


def test_every_type_that_the_gguf_package_dequantizes_is_read() -> None:
    """The random blocks of the tests cover all of them, so that a newer gguf package asks for a new row there."""
    assert {kind for kind in Kind if readable(kind)} == {Kind.F32, Kind.F16, Kind.BF16, *QUANTS}


def test_the_parts_of_a_split_file_read_as_one(tmp_path: Path, small: LlamaForCausalLM) -> None:
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(40)]}
    write_model(tmp_path / "one.gguf", small, Kind.Q8_0, metadata=tokens)
    write_model(tmp_path / "m.gguf", small, Kind.Q8_0, metadata=tokens, split=5)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert [part.name for part in parts] == [f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    one = open_checkpoint(tmp_path / "one.gguf")
    for part in parts:  # any part names the model
        checkpoint = open_checkpoint(part)
        assert checkpoint.config == one.config
        for name in one.names():
            np.testing.assert_array_equal(checkpoint.tensor(name), one.tensor(name))
            if len(one.shape(name)) == 2:
                ours, whole = checkpoint.raw(name, 3, 4), one.raw(name, 3, 4)
                assert ours is not None
                assert whole is not None
                np.testing.assert_array_equal(ours.blocks, whole.blocks)
    before = open_checkpoint(parts[0]).revision
    content = bytearray(parts[2].read_bytes())
    content[-40] ^= 1
    parts[2].write_bytes(content)
    assert open_checkpoint(parts[0]).revision != before


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, small: LlamaForCausalLM) -> None:
    write_model(tmp_path / "m.gguf", small, split=5)
    first, second, third = (tmp_path / f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3))
    content = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(UserError, match=r"m-00002-of-00003\.gguf is part 2 of 3 by its metadata"):
        open_checkpoint(first)
    second.unlink()
    with pytest.raises(UserError, match=r"lacks m-00002-of-00003\.gguf; download all 3 parts"):
        open_checkpoint(third)
    second.write_bytes(content[:-1000])
    with pytest.raises(UserError, match=r"m-00002-of-00003\.gguf is truncated"):
        open_checkpoint(first)
    second.write_bytes(content)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match=r"renamed\.gguf is one of 3 parts, which need names such as NAME-00001"):
        open_checkpoint(tmp_path / "renamed.gguf")


def test_reader_agrees_with_the_gguf_packages(smollm2_gguf: Path) -> None:
    """Compares fields and tensors of a real file with the gguf package, which is too slow for large vocabularies."""
    theirs, ours = GGUFReader(smollm2_gguf), GGUFFile(smollm2_gguf)
    their_fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(their_fields) == list(ours.fields)
    for name, value in their_fields.items():
        assert np.array_equal(value, ours.fields[name]), name
    assert {t.name for t in theirs.tensors} == set(ours.tensors)
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.kind, mine.offset, mine.nbytes) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))


def test_smollm2_generates_its_published_text_in_transformers(smollm2_gguf: Path) -> None:
    """With the weights, row order and config of the real file, the model generates its published continuation."""
    checkpoint = open_checkpoint(smollm2_gguf)
    assert checkpoint.config == PRESETS["smollm2-135m-instruct"].config
    assert checkpoint.eos_token_id() == (2,)
    network = LlamaForCausalLM(HFLlamaConfig(**checkpoint.config.to_dict())).eval()
    tensors = {name: torch.from_numpy(checkpoint.tensor(name)) for name in checkpoint.names()}
    network.load_state_dict(tensors, strict=False)
    network.tie_weights()
    prompt = [504, 3575, 282, 4649, 314]  # The capital of France is
    greedy = [7042, 30, 198, 198, 504, 2988, 314, 42, 216]
    with torch.no_grad():
        logits = network(torch.tensor([prompt + greedy])).logits[0]
    assert logits.argmax(-1)[len(prompt) - 1 : -1].tolist() == greedy


def test_names() -> None:
    assert gguf_name("model.layers.3.self_attn.o_proj.bias") == "blk.3.attn_output.bias"
