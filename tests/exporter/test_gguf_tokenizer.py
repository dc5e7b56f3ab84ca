"""Compares tokenizers built from GGUF metadata with published behaviour and with BPE written from its definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.gguf.file import GGUFFile
from edgellama.exporter.checkpoint.gguf.pre_kinds import PRE_KINDS
from edgellama.exporter.checkpoint.gguf.tokenizer import build_tokenizer, gguf_tokenizer_files
from support import bpe_reference
from support.bpe_reference import PUBLISHED, byte_alphabet, byte_level_bpe, merge_ranks, sentencepiece_bpe
from support.gguf_files import add, finish

CORPUS = [
    "The capital of France is",
    "I've seen 1234 dogs; they'll bark, we'RE gone. He'd say \"it's 3.14159\"...",
    "Ünïcödé, naïve café, e\u0301 (combining), ﬁ ligature, ½ ² Ⅻ ٣٤٥",
    "日本語のテキスト、中文字符，한국어 텍스트 🙂👩‍👩‍👧 🇫🇷",
    "def f(x):\n\tif x >= 10_000:\r\n        return {'a': x**2, \"b\": [1, 2]}  # done\n\n\n",
    "  leading and trailing   \n \t mixed \u00a0 spaces\u3000  ",
    "\n\n\n  \r\n\r\n x",
    "a" * 50 + "====----!!!!????" + " " * 33 + "x",
    "",
    " ",
    "\x00\x7f\u200b\ufeff",
]
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TEXT = ANY | st.text("ab'stRE 019\n\r\t.!²é\u0301日", max_size=40)
MANY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> GGUFFile:
    return GGUFFile(smollm2_gguf)


@pytest.fixture(scope="module")
def smollm2_folder(smollm2: GGUFFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    for name, content in gguf_tokenizer_files(smollm2).items():
        (folder / name).write_bytes(content)
    return folder


def test_smollm2_through_transformers(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert tokenizer("The capital of France is").input_ids == [504, 3575, 282, 4649, 314]
    assert tokenizer.decode([504, 3575, 282, 4649, 314]) == "The capital of France is"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    padded = tokenizer(["A list of colors: red, blue", "Portugal is"], padding=True)
    assert [len(row) for row in padded.input_ids] == [8, 8]
    assert tokenizer.batch_decode(padded.input_ids, skip_special_tokens=True)[1] == "Portugal is"
    for text in CORPUS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_smollm2_chat_template_through_transformers(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert text == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids[:3] == [1, 9690, 198]
    assert ids[-8:] == [198, 1, *tokenizer("user\nHi").input_ids, 2, 198, 1, 520, 9531, 198][-8:]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("system\nYou are")


def test_smollm2_generation_config(smollm2_folder: Path) -> None:
    read = json.loads((smollm2_folder / "generation_config.json").read_text())
    assert read == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.fixture(scope="module")
def published_smollm2(smollm2: GGUFFile) -> Tokenizer:
    """Like the published tokenizer.json of SmolLM2: single digits, then GPT-2's pre-tokenizer."""
    tokens, merges = smollm2.fields["tokenizer.ggml.tokens"], smollm2.fields["tokenizer.ggml.merges"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:17])
    return tokenizer


@pytest.fixture(scope="module")
def loaded_smollm2(smollm2_folder: Path) -> tuple[Tokenizer, list[bool]]:
    """The tokenizer from its file, and the bytes that have a token (21 of the 256 have none in SmolLM2)."""
    tokenizer = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    return tokenizer, [letter in vocabulary for letter in byte_alphabet()]


@MANY
@given(text=TEXT)
def test_smollm2_like_the_published_tokenizer(published_smollm2: Tokenizer, loaded_smollm2: Any, text: str) -> None:
    ours, has_byte = loaded_smollm2
    for case in (text, f"<|im_start|>{text}<|im_end|>\n"):
        ids = ours.encode(case).ids
        assert ids == published_smollm2.encode(case).ids
        if all(has_byte[byte] for byte in case.encode()):
            assert ours.decode(ids, skip_special_tokens=False) == case


@pytest.fixture(scope="module")
def merges(smollm2: GGUFFile) -> tuple[dict[str, int], dict[tuple[str, ...], int]]:
    """The vocabulary and the merges of SmolLM2, which the kinds below are tested with."""
    vocabulary = {token: i for i, token in enumerate(smollm2.fields["tokenizer.ggml.tokens"])}
    return vocabulary, merge_ranks(smollm2.fields["tokenizer.ggml.merges"])


@pytest.fixture(scope="module", params=PUBLISHED)
def kind(request: pytest.FixtureRequest, smollm2: GGUFFile) -> tuple[str, Tokenizer]:
    """Each kind of pre-tokenizer that has a reference."""
    file = GGUFFile(smollm2.path)
    file.fields["tokenizer.ggml.pre"] = request.param
    return request.param, build_tokenizer(file)


def test_every_kind_is_byte_level_bpe_over_its_published_split(kind: Any, merges: Any) -> None:
    name, tokenizer = kind
    for text in CORPUS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == byte_level_bpe(text, name, *merges), text


@settings(MANY, max_examples=25)
@given(text=TEXT)
def test_every_kind_on_any_text(kind: Any, merges: Any, text: str) -> None:
    name, tokenizer = kind
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == byte_level_bpe(text, name, *merges)


def test_every_kind_splits_and_joins_any_text(smollm2: GGUFFile) -> None:
    """Also the kinds without a reference above: no pattern fails, and no text is lost."""
    for name, pre in PRE_KINDS.items():
        for text in CORPUS:
            pieces = [text]
            for pattern in pre.patterns:
                splitter = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
                pieces = [part for piece in pieces for part, _ in splitter.pre_tokenize_str(piece)]
            assert "".join(pieces) == text, name


@pytest.mark.parametrize(
    ("arch", "mark", "kind"),
    [("qwen2", "<|x|>", "qwen2"), ("llama", "<|begin_of_text|>", "llama-bpe"), ("llama", "<|x|>", "default")],
)
def test_a_file_without_a_kind_takes_that_of_its_family(tmp_path: Path, arch: str, mark: str, kind: str) -> None:
    """As files of before May 2024 have none. The user is told."""
    fields = byte_tokens()
    fields["tokens"][256] = mark
    named = build_tokenizer(write_tokenizer(tmp_path / "named.gguf", arch, **{**fields, "pre": kind}))
    del fields["pre"]
    with pytest.warns(UserWarning, match=rf"does not say how its tokenizer splits text .*'{kind}' is used"):
        found = build_tokenizer(write_tokenizer(tmp_path / "t.gguf", arch, **fields))
    assert found.to_str() == named.to_str()


def write_tokenizer(path: Path, arch: str = "llama", **fields: Any) -> GGUFFile:
    writer = GGUFWriter(path, arch)
    writer.add_context_length(64)
    for key, value in fields.items():
        if value is None:
            continue
        if key in ("token_type", "scores"):
            (writer.add_token_types if key == "token_type" else writer.add_token_scores)(value)
        elif key == "chat_template":
            add(writer, "tokenizer.chat_template", value)
        else:
            add(writer, f"tokenizer.ggml.{key}", value)
    writer.add_tensor("t", np.zeros(1, np.float32))
    finish(writer)
    return GGUFFile(path)


def byte_tokens() -> dict[str, Any]:
    marks = ["<|begin|>", "<|end|>", "<|eot|>", "<tool>"]
    types = [TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED, TokenType.NORMAL]
    return {
        **{"model": "gpt2", "pre": "llama-bpe", "tokens": [*byte_alphabet(), *marks, "Ġa"], "merges": ["Ġ a"]},
        **{"token_type": types, "bos_token_id": 256, "eos_token_id": 257, "eot_token_id": 258},
    }


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_the_context_of_every_architecture(tmp_path: Path, arch: str) -> None:
    files = gguf_tokenizer_files(write_tokenizer(tmp_path / "t.gguf", arch, **byte_tokens()))
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 64


def test_special_tokens_and_bos(tmp_path: Path) -> None:
    fields = byte_tokens()
    files = gguf_tokenizer_files(write_tokenizer(tmp_path / "t.gguf", **fields, chat_template="{{ x }}"))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert files["chat_template.jinja"] == b"{{ x }}"
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 256, "eos_token_id": [257, 258]}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("x a").input_ids == [256, ord("x"), 260]  # bos, like Llama 3
    assert tokenizer("x", "y").input_ids == [256, ord("x"), 256, ord("y")]
    assert tokenizer("x", add_special_tokens=False).input_ids == [ord("x")]
    ids = tokenizer("<|eot|><tool>", add_special_tokens=False).input_ids
    assert ids == [258, 259]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool>"

    for flags, expected in (
        ({"add_bos_token": False}, [ord("x")]),
        ({"add_bos_token": False, "add_eos_token": True}, [ord("x"), 257]),
    ):
        file = write_tokenizer(tmp_path / "t.gguf", **{**fields, **flags})
        assert build_tokenizer(file).encode("x").ids == expected


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> tuple[GGUFFile, Tokenizer, dict[str, int], np.ndarray]:
    """A vocabulary like Llama 2's: special tokens, bytes, pieces by decreasing score, then single letters."""
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    trained = Tokenizer(models.BPE())
    texts = [Path(bpe_reference.__file__).read_text(), *CORPUS]
    trained.train_from_iterator(["▁" + text.replace(" ", "▁") for text in texts], trainer)
    vocabulary = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    pieces = [t for t in vocabulary if len(t) > 1] + [t for t in vocabulary if len(t) == 1]
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *pieces, "<tool>"]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    types += [TokenType.NORMAL] * len(pieces) + [TokenType.USER_DEFINED]
    file = write_tokenizer(
        tmp_path_factory.mktemp("sp") / "t.gguf",
        **{"model": "llama", "tokens": tokens, "scores": scores, "token_type": types},
        **{"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    )
    return file, build_tokenizer(file), {piece: 259 + i for i, piece in enumerate(pieces)}, np.asarray(scores)


def test_sentencepiece_corpus(sentencepiece: Any) -> None:
    _, tokenizer, pieces, scores = sentencepiece
    known = pieces | {token: 3 + i for i, token in enumerate(BYTES)}
    for text in (*CORPUS, "unseen: ζ 𝄞"):
        ids = tokenizer.encode(text).ids
        assert ids == [1, *sentencepiece_bpe(text, known, scores)], text
        assert tokenizer.decode(ids) == text


@MANY
@given(text=TEXT)
def test_sentencepiece_on_any_text(sentencepiece: Any, text: str) -> None:
    _, tokenizer, pieces, scores = sentencepiece
    known = pieces | {token: 3 + i for i, token in enumerate(BYTES)}
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == sentencepiece_bpe(text, known, scores)
    assert tokenizer.decode(ids) == text


def test_sentencepiece_through_transformers(sentencepiece: Any, tmp_path: Path) -> None:
    for name, content in gguf_tokenizer_files(sentencepiece[0]).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("The text <tool></s>").input_ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "Thetext<tool>"
    assert ids == sentencepiece[1].encode("The text <tool></s>").ids


REFUSED = [
    ({"model": "bert"}, "model = 'bert' is not supported; supported: gpt2 and llama"),
    ({"pre": True}, "pre must be of type str, not bool"),
    ({"eos_token_id": "2"}, "eos_token_id must be of type int, not str"),
    ({"pre": "kimi-k2"}, "pre = 'kimi-k2' is not supported; supported: default, llama-bpe, .*TOKENIZER=none"),
    ({"model": "llama"}, "scores is missing"),
    ({"bos_token_id": 999}, "bos_token_id = 999 is outside the 261 tokens"),
    ({"merges": ["Ġ a", "a b"]}, "merge 'a b' does not join two tokens"),
    ({"merges": ["Ġa"]}, "merge 'Ġa' does not join two tokens"),
    ({"merges": None}, "merges is missing"),
    ({"tokens": ["a"] * 261}, "260 tokens appear twice"),
    ({"token_type": [1] * 260}, "261 tokens but 260 token types"),
]


@pytest.mark.parametrize(
    ("change", "message"), REFUSED, ids=[next(iter(c)) + str(i) for i, (c, _) in enumerate(REFUSED)]
)
def test_an_unsupported_tokenizer_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    fields = {**byte_tokens(), **change}
    with pytest.raises(UserError, match=message):
        gguf_tokenizer_files(write_tokenizer(tmp_path / "t.gguf", **fields))


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    fields = byte_tokens()
    del fields["tokens"], fields["token_type"]
    with pytest.raises(UserError, match="has no tokenizer"):
        build_tokenizer(write_tokenizer(tmp_path / "t.gguf", **fields))


@MANY
@given(data=st.data())
def test_a_damaged_header_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "t.gguf"
    damaged = bytearray(write_tokenizer(path, **byte_tokens()).path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.sampled_from([0, 1, 127, 255]) | st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        tokenizer = build_tokenizer(GGUFFile(path))
    except UserError:
        return
    tokenizer.encode("what is built can be used")
