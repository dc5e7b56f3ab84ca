"""GGUF files that are cut, damaged, or have values that are not finite: an error each, never a crash."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.gguf.file import GGUFFile
from edgellama.exporter.checkpoint.open import open_checkpoint
from edgellama.exporter.opsets.cpu_weights import weight_pieces
from support.gguf_files import QUANTS, SCALE_BYTES, SCALES, Kind, gguf_name, tiny_llama, write_model


@pytest.fixture(scope="module")
def small() -> LlamaForCausalLM:
    return tiny_llama(num_hidden_layers=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small: LlamaForCausalLM) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_model(path, small, metadata={"tokenizer.ggml.tokens": list("abcdefgh")})
    return path.read_bytes()


def test_a_cut_file_is_reported_with_both_sizes(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=rf"is truncated: it has {len(whole) - 100:,} bytes, its header describes \d"):
        open_checkpoint(tmp_path / "m.gguf")


SLOW_FIXTURES = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW_FIXTURES
@given(data=st.data())
def test_a_file_cut_anywhere_is_a_user_error(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    header = GGUFFile.header_size(open_file(tmp_path, whole))
    keep = data.draw(st.integers(0, header + 1000) | st.integers(0, len(whole) - 64))
    (tmp_path / "m.gguf").write_bytes(whole[:keep])
    with pytest.raises(UserError):
        open_checkpoint(tmp_path / "m.gguf")


@SLOW_FIXTURES
@given(data=st.data())
def test_a_damaged_header_never_crashes(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    header = GGUFFile.header_size(open_file(tmp_path, whole))
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.sampled_from([0, 1, 127, 255]) | st.integers(0, 255))
    (tmp_path / "m.gguf").write_bytes(damaged)
    try:
        checkpoint = open_checkpoint(tmp_path / "m.gguf")
    except UserError:
        return
    for name in checkpoint.names():  # a file that opens can be read, or moved tensors have values that are not finite
        with contextlib.suppress(UserError):
            assert checkpoint.tensor(name).shape == checkpoint.shape(name)


def open_file(folder: Path, content: bytes) -> GGUFFile:
    (folder / "whole.gguf").write_bytes(content)
    return GGUFFile(folder / "whole.gguf")


WITH_HALVES = [kind for kind in QUANTS if kind not in SCALE_BYTES]  # scales are float16


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, *WITH_HALVES], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bits", [0x7E00, 0x7C00])
def test_a_scale_or_value_that_is_not_finite_is_refused(
    tmp_path: Path, small: LlamaForCausalLM, kind: Kind, bits: int, recwarn: pytest.WarningsRecorder
) -> None:
    """The bits of a NaN or an infinity in the first row: a value, or for the quantized types the scale of a block."""
    write_model(tmp_path / "m.gguf", small, kind)
    name = "model.layers.0.mlp.down_proj.weight"
    found = next(t for t in GGUFReader(tmp_path / "m.gguf").tensors if t.name == gguf_name(name))
    at = SCALES.get(kind, (0,))[0]
    exponent = {0x7E00: 0x7FC0, 0x7C00: 0x7F80}[bits]  # the same value as bfloat16: the upper half of a float32
    data = {Kind.F32: exponent << 16, Kind.BF16: exponent}.get(kind, bits).to_bytes(
        4 if kind == Kind.F32 else 2, "little"
    )
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(found.data_offset + at)
        file.write(data)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=rf"{name} is damaged: .*\(the first of them in row 0\)"):
        checkpoint.tensor(name)
    if kind == Kind.Q4_0:
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            for piece in weight_pieces(name, checkpoint, "q4_0"):
                piece()
    assert not recwarn.list


def test_doubled_and_overlapping_parts_are_refused(tmp_path: Path, small: LlamaForCausalLM) -> None:
    write_model(tmp_path / "m.gguf", small)
    data = (tmp_path / "m.gguf").read_bytes()

    def damaged(name: str, changed: bytes) -> None:
        assert changed != data
        (tmp_path / name).write_bytes(changed)

    damaged("key.gguf", data.replace(b"llama.rope.freq_base", b"llama.context_length"))  # of the same length
    damaged("tensor.gguf", data.replace(b"blk.0.attn_k.weight", b"blk.0.attn_v.weight"))
    at = data.index(b"blk.0.ffn_norm.weight") + len(b"blk.0.ffn_norm.weight") + 4 + 8 + 4  # its offset
    damaged("place.gguf", data[:at] + bytes(8) + data[at + 8 :])
    damaged("aligned.gguf", data[:at] + bytes([1]) + data[at + 1 :])
    for name, message in (
        ("key", "the key 'llama.context_length' occurs twice"),
        ("tensor", "the tensor 'blk.0.attn_v.weight' occurs twice"),
        ("place", "overlap"),
        ("aligned", "needed: a multiple of 32"),
    ):
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path / f"{name}.gguf")
