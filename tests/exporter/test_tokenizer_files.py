"""The artifact has the tokenizer that transformers makes of a folder's files, whatever files these are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from edgellama.errors import UserError
from edgellama.exporter.checkpoint.tokenizer_files import folder_tokenizer_files
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.writing.companions import write_companions
from edgellama.text.tokenizer import Tokenizer
from support.checkpoints import DEFAULTS

CONFIG = LlamaConfig.from_dict({**DEFAULTS, "model_type": "llama"})
SPECIALS = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|a|>", "<|b|>", "<|c|>", "<|d|>"]
BASE = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
TEXTS = ["<|im_start|>user hi<|im_end|>", "a <|a|> b<|b|>", " lead", "two  spaces", "naïve 日本語\n\n x", ""]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
CHAT = [{"role": "user", "content": "hi"}]
DEFAULT = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
TOOL_USE = "TOOLS={{ tools | tojson }};" + DEFAULT


def byte_level(specials: list[str] = SPECIALS, special: bool = True, bos: bool = True) -> dict[str, Any]:
    """Returns a tokenizer.json of single bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[("<|begin|>", 256)]
        )
    written: dict[str, Any] = json.loads(made.to_str())
    for token in written["added_tokens"]:
        token["special"] = special
    return written


def folder(path: Path, **files: Any) -> Path:
    """Writes a checkpoint without weights: file name -> text, or an object for JSON."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def opened(source: Path, vocab_size: int = 1 << 20) -> tuple[Tokenizer, Path]:
    """Returns the artifact's tokenizer as the runtime opens it, and the artifact's folder."""
    artifact = source.with_name(source.name + "-artifact")
    artifact.mkdir()
    shutil.copy(source / "config.json", artifact)
    write_companions(artifact, folder_tokenizer_files(source, CONFIG), vocab_size, source)
    return Tokenizer.from_folder(artifact), artifact


def token(content: str, **change: bool) -> dict[str, Any]:
    flags = {name: False for name in ("lstrip", "normalized", "rstrip", "single_word")}
    return {"content": content, "special": True, **flags, **change}


DECODER = {str(256 + i): token(text) for i, text in enumerate(SPECIALS)}
MANY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # tokenizer.json, and the other files
    "complete": (byte_level(), {}),
    "added_tokens_decoder": (byte_level(SPECIALS[:2]), {"tokenizer_config.json": {"added_tokens_decoder": DECODER}}),
    "added_tokens.json": (byte_level(SPECIALS[:2]), {"added_tokens.json": {"<|im_start|>": 258, "<|im_end|>": 259}}),
    "special tokens of tokenizer_config": (
        byte_level(SPECIALS[:2]),
        {"tokenizer_config.json": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}},
    ),
    "special_tokens_map.json": (
        byte_level(SPECIALS[:2]),
        {"special_tokens_map.json": {"eos_token": token("<|im_end|>"), "pad_token": "<|a|>"}},
    ),
    "other special flags": (byte_level(special=False), {"tokenizer_config.json": {"added_tokens_decoder": DECODER}}),
    "tokens that strip": (
        byte_level(SPECIALS[:4]),
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {**DECODER, "260": token("<|a|>", lstrip=True, rstrip=True)}
            }
        },
    ),
    "add_bos and add_eos": (byte_level(), {"tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True}}),
    "no bos": (byte_level(), {"tokenizer_config.json": {"add_bos_token": False, "add_eos_token": False}}),
    "a bos that tokenizer.json does not add": (
        byte_level(bos=False),
        {"tokenizer_config.json": {"add_bos_token": True}},
    ),
    "a class with other rules": (byte_level(), {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast"}}),
    "a class of its own code": (
        byte_level(),
        {"tokenizer_config.json": {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": [None, "a.B"]}}},
    ),
}


@pytest.mark.parametrize("case", MANY)
def test_the_artifacts_tokenizer_is_transformers(tmp_path: Path, case: str) -> None:
    """The ids and texts of AutoTokenizer over the source, of the runtime and of AutoTokenizer over the artifact."""
    written, others = MANY[case]
    config = {**BASE, **others.get("tokenizer_config.json", {})}
    source = folder(tmp_path / "m", **{**others, "tokenizer.json": written, "tokenizer_config.json": config})
    ours, artifact = opened(source)
    if "auto_map" in config:  # AutoTokenizer would run the code of the checkpoint
        (source / "tokenizer_config.json").write_text(json.dumps(BASE))
    theirs, again = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(artifact)
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids == again(text).input_ids, text
        shown = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == shown == again.decode(ids, skip_special_tokens=True)
    named = ("bos_token", "eos_token", "pad_token")
    assert ours.special_tokens == {x: str(value) for x, value in theirs.special_tokens_map.items() if x in named}
    assert (again.eos_token_id, again.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert set(again(TEXTS[0])) == {"input_ids", "attention_mask"}


def named_list(path: Path) -> Path:
    templates = [{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": TOOL_USE}]
    config = {**BASE, "chat_template": templates}
    return folder(path, **{"tokenizer.json": byte_level(), "tokenizer_config.json": config})


def named_files(path: Path) -> Path:
    named = {"chat_template.jinja": DEFAULT, "additional_chat_templates/tool_use.jinja": TOOL_USE}
    return folder(path, **{"tokenizer.json": byte_level(), "tokenizer_config.json": BASE, **named})


@pytest.mark.parametrize("write", [named_list, named_files])
def test_named_templates_are_chosen_as_transformers_does(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    source = write(tmp_path / "m")
    ours, artifact = opened(source)
    for theirs in (AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(artifact)):
        for tools in (None, TOOLS):
            assert ours.render_chat(CHAT, tools=tools) == theirs.apply_chat_template(CHAT, tools=tools, tokenize=False)


def corpus() -> list[str]:
    return (Path(__file__).parents[2] / "README.md").read_text().splitlines()


LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "add_bos_token": True}


@pytest.mark.parametrize("declared", [None, LLAMA])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [{}, {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}])
def test_a_sentencepiece_model_alone(
    tmp_path: Path, kind: str, options: Mapping[str, Any], declared: dict[str, Any] | None
) -> None:
    """The ids of sentencepiece itself, also for bytes and for what its normalization changes."""
    import sentencepiece  # the export's packages have it

    source = folder(tmp_path / "m", **({} if declared is None else {"tokenizer_config.json": declared}))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(source / "tokenizer"),
        **{"model_type": kind, "vocab_size": 500, "byte_fallback": True, "minloglevel": 2, **options},
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    ours, _ = opened(source)
    for text in [*corpus()[:60], *TEXTS, "unseen: ζ 𝄞 🙂", "ﬁ ½ ２  x", "  two   spaces  "]:
        if "<|" not in text:
            assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), text
            assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.encode("a") == [1] * (declared is not None) + theirs.encode("a")


@pytest.mark.parametrize("declared", [{"tokenizer_class": "GPT2Tokenizer"}, None])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_vocab_json_and_merges_txt(tmp_path: Path, architecture: str, declared: dict[str, str] | None) -> None:
    """AutoTokenizer opens them for a Llama with a class only."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    source = folder(tmp_path / "m", **({} if declared is None else {"tokenizer_config.json": declared}))
    (source / "config.json").write_text(json.dumps({**CONFIG.to_dict(), "model_type": architecture}))
    trained.model.save(str(source))
    assert not (source / "tokenizer.json").exists()
    ours, _ = opened(source)
    for text in [*corpus()[:40], *TEXTS]:
        assert ours.encode(text, add_special_tokens=False) == trained.encode(text).ids


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "3" * 64 + "\nsize 17209920\n"
DAMAGED = {
    "a pointer as tokenizer.json": ("tokenizer.json", POINTER, "a Git LFS pointer, not the file itself"),
    "a pointer as a template": ("chat_template.jinja", POINTER, "a Git LFS pointer"),
    "an empty tokenizer.json": ("tokenizer.json", "", "empty"),
    "a cut tokenizer.json": ("tokenizer.json", json.dumps(byte_level())[:-100], "tokenizers cannot read it"),
    "an object without a model": ("tokenizer.json", "{}", "tokenizers cannot read it"),
    "a pointer as tokenizer_config.json": ("tokenizer_config.json", POINTER, "a Git LFS pointer"),
    "a list as tokenizer_config.json": ("tokenizer_config.json", "[]", "a JSON list; needed: an object"),
    "a list as added tokens": ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "transformers cannot open"),
    "a number as bos": ("tokenizer_config.json", {"bos_token": 5}, "transformers cannot open"),
    "a template without a name": ("tokenizer_config.json", {"chat_template": [{"template": "x"}]}, "needed: a text"),
    "a list as special tokens": ("special_tokens_map.json", "[]", "a JSON list"),
    "an empty generation_config.json": ("generation_config.json", "", "empty"),
    "a cut generation_config.json": ("generation_config.json", '{"eos', "not valid JSON"),
    "an empty template": ("chat_template.jinja", "", "empty"),
    "a template with a syntax error": (
        "chat_template.jinja",
        "{% for m in messages %}{{ m.content }",
        "cannot be compiled",
    ),
    "the same in tokenizer_config.json": ("tokenizer_config.json", {"chat_template": "{% if %}"}, "cannot be compiled"),
    "the same in another template": ("additional_chat_templates/tool_use.jinja", "{% if %}", "cannot be compiled"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, case: str) -> None:
    name, content, reason = DAMAGED[case]
    files: dict[str, Any] = {
        "tokenizer.json": byte_level(),
        "tokenizer_config.json": BASE,
        "chat_template.jinja": DEFAULT,
    }
    if "chat_template" in str(content):
        del files["chat_template.jinja"]
    if isinstance(content, dict):
        content = {**BASE, **content}
    source = folder(tmp_path / "m", **{**files, name: content})
    with pytest.raises(UserError, match=reason) as error:
        opened(source)
    assert Path(name).name in str(error.value)
    assert "m-artifact" not in str(error.value)


def test_a_folder_without_a_tokenizer_names_the_way_to_export_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer .*or export it without one: TOKENIZER=none"):
        folder_tokenizer_files(folder(tmp_path / "m"), CONFIG)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "m", **{"tokenizer.json": byte_level()})
    files = folder_tokenizer_files(source, CONFIG)
    with pytest.raises(UserError, match=r"ids up to 255, and the model 200 tokens .* the tokenizer of another model"):
        write_companions(tmp_path, files, 200, source)
    notes = write_companions(tmp_path, files, 262, source)
    assert notes == ["the model has 262 tokens (vocab_size), so prompts cannot have '<|c|>' (262), '<|d|>' (263)"]


def test_settings_that_cannot_be_used_are_told_at_the_export(tmp_path: Path) -> None:
    stored = {"do_sample": True, "temperature": 0.0, "top_k": -1, "chat_format": "chatml"}
    source = folder(tmp_path / "m", **{"tokenizer.json": byte_level(), "generation_config.json": stored})
    files = folder_tokenizer_files(source, CONFIG)
    assert json.loads(files["generation_config.json"]) == stored
    first, second = sorted(write_companions(tmp_path, files, 264, source))
    assert "chat_format: not known" in first
    assert "temperature is 0 with do_sample. The likeliest token is taken" in second


def test_without_generation_config_the_ids_of_the_config_are_written(tmp_path: Path) -> None:
    files = folder_tokenizer_files(folder(tmp_path / "m", **{"tokenizer.json": byte_level()}), CONFIG)
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 256, "eos_token_id": 257}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_max_length", "long"),
        ("model_max_length", [1]),
        ("model_max_length", -1),
        ("padding_side", "top"),
        ("clean_up_tokenization_spaces", "no"),
        ("chat_template", 1.5),
        ("chat_template", ["{{ x }}"]),
        ("chat_template", [{"name": "default", "template": None}]),
        ("chat_template", {"default": 1}),
    ],
)
def test_a_setting_of_another_type_is_refused(tmp_path: Path, name: str, value: object) -> None:
    made = folder(tmp_path / "m", **{"tokenizer.json": byte_level(), "tokenizer_config.json": {**BASE, name: value}})
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: {name} is .*; needed"):
        folder_tokenizer_files(made, CONFIG)


def test_two_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    written = byte_level()
    written["model"]["vocab"]["u"] = written["model"]["vocab"]["v"]
    made = folder(tmp_path / "m", **{"tokenizer.json": written, "tokenizer_config.json": BASE})
    with pytest.raises(UserError, match=r"tokenizer\.json: '[uv]' and '[uv]' have the same id"):
        folder_tokenizer_files(made, CONFIG)
