"""The tokenizer files of an artifact, made from those of a Hugging Face folder.

A folder describes its tokenizer in up to eight files, of which one overrides the other. transformers reads them. The
result is written as one tokenizer.json, which the runtime and every release of transformers open alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from edgellama.artifact.json_reader import parse_object, read_bytes
from edgellama.errors import UserError, shown

from ..network.config import LlamaConfig
from .lfs_pointer import check_content

REMEDY = "Download the checkpoint again, or correct the file"
LARGEST = 256 << 20  # bytes of a file; tokenizer.json of Gemma has 33 MB
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")  # one of them is needed
READ = (
    *TOKENIZERS,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja"),
)
NAMED = "additional_chat_templates"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ENDLESS = 10**18  # transformers writes 10**30 as the greatest length of a model that has none


def folder_tokenizer_files(folder: Path, config: LlamaConfig) -> dict[str, bytes]:
    """Return the tokenizer files, name -> content.

    They are tokenizer.json, tokenizer_config.json, generation_config.json, and chat_template.jinja if there is one chat
    template. Several named templates are in tokenizer_config.json.

    Raises UserError if the folder has no tokenizer, a file is damaged, or transformers cannot open the tokenizer.
    """
    _check_files(folder)
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise UserError(
            f"{folder} has no tokenizer (no tokenizer.json, tokenizer.model or vocab.json). Download the checkpoint "
            "again, with its tokenizer, or export it without one: TOKENIZER=none"
        )
    opened = _opened(folder)
    model = tokenizers.Tokenizer.from_str(opened.backend_tokenizer.to_str())
    model.no_padding()
    model.no_truncation()
    templates = opened.chat_template or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    named = {name: token for name in SPECIAL if (token := getattr(opened, name, None)) is not None}
    settings: dict[str, Any] = {name: str(token) for name, token in named.items()}
    if others := [str(token) for token in getattr(opened, "extra_special_tokens", None) or []]:
        settings["additional_special_tokens"] = others
    if opened.model_max_length < ENDLESS:
        settings["model_max_length"] = int(opened.model_max_length)
    settings["padding_side"] = opened.padding_side
    settings["clean_up_tokenization_spaces"] = bool(opened.clean_up_tokenization_spaces)
    return {
        **tokenizer_files(model, settings, templates),
        "generation_config.json": _generation_config(folder, config),
    }


def tokenizer_files(
    model: tokenizers.Tokenizer, settings: Mapping[str, Any], templates: Mapping[str, str]
) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json and maybe chat_template.jinja, name -> content.

    Args:
        model: the whole tokenizer, as encoding and decoding need it.
        settings: further keys of tokenizer_config.json.
        templates: the chat templates by name.
    """
    written: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        # transformers 4 adds token_type_ids otherwise, which no model of this family takes.
        "model_input_names": ["input_ids", "attention_mask"],
        **settings,
    }
    splitter = json.loads(model.to_str())["pre_tokenizer"] or {}
    if "add_prefix_space" in splitter:  # transformers 4 sets it to False if it is absent here
        written["add_prefix_space"] = splitter["add_prefix_space"]
    files = {"tokenizer.json": model.to_str(pretty=True).encode()}
    if set(templates) == {"default"}:
        files["chat_template.jinja"] = templates["default"].encode()
    elif templates:
        # The only form of several templates that all releases read: a chat_template.jinja would hide the others.
        written["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    files["tokenizer_config.json"] = to_json(written)
    return files


def generation_config(config: LlamaConfig) -> dict[str, Any]:
    """Return a generation config with the token ids of the config."""
    return {key: value for key, value in config.to_dict().items() if key.endswith("_token_id") and value is not None}


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def content(path: Path) -> bytes:
    """Return the content of a file. The JSON of all but tokenizer.json, which tokenizers reads, is checked.

    Raises UserError if it cannot be read, is empty or damaged, or holds no JSON object.
    """
    try:
        data = read_bytes(path, LARGEST)
        check_content(path, data)
        if path.suffix == ".json" and path.name != "tokenizer.json":
            parse_object(data)
        elif path.suffix == ".jinja":
            data.decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Download it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start:,}). Download it again") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}. {REMEDY}") from error
    return data


def _generation_config(folder: Path, config: LlamaConfig) -> bytes:
    path = folder / "generation_config.json"
    return content(path) if path.exists() else to_json(generation_config(config))


def _check_files(folder: Path) -> None:
    """Raise UserError, which names it, for a damaged file of those that describe the tokenizer."""
    for name in READ:
        if (folder / name).exists():
            content(folder / name)
    for path in sorted((folder / NAMED).glob("*.jinja")):
        content(path)
    if (folder / "tokenizer_config.json").exists():
        path = folder / "tokenizer_config.json"
        _check_settings(path, parse_object(content(path)))
    if (folder / "tokenizer.json").exists():
        _check_ids(folder / "tokenizer.json")


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that is copied into the artifact and has another type. null means "not set"."""
    for name, fits, needed in (
        ("model_max_length", lambda x: isinstance(x, int | float) and not isinstance(x, bool) and x > 0, "a number"),
        ("padding_side", lambda x: x in ("left", "right"), "'left' or 'right'"),
        ("clean_up_tokenization_spaces", lambda x: isinstance(x, bool), "true or false"),
        ("chat_template", _are_templates, "a text, or a list of objects with the texts name and template"),
    ):
        value = settings.get(name)
        if value is not None and not fits(value):
            raise UserError(f"{path}: {name} is {shown(value)}; needed: {needed}. {REMEDY}")


def _are_templates(value: Any) -> bool:
    """Return whether transformers reads a value of chat_template as one template or as several."""
    if isinstance(value, list):
        return all(
            isinstance(x, dict) and isinstance(x.get("name"), str) and isinstance(x.get("template"), str) for x in value
        )
    if isinstance(value, dict):
        return all(isinstance(template, str) for template in value.values())
    return isinstance(value, str)


def _check_ids(path: Path) -> None:
    """Raise UserError if two tokens of a vocabulary have one id: the tokenizers library would lose one of them."""
    try:
        vocabulary = json.loads(content(path))["model"]["vocab"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return  # the tokenizers library says what is wrong
    if not isinstance(vocabulary, dict):
        return  # a list of pieces: their places are their ids
    seen: dict[Any, str] = {}
    for token, number in vocabulary.items():
        if isinstance(number, int) and seen.setdefault(number, token) != token:
            raise UserError(f"{path}: {shown(seen[number])} and {shown(token)} have the same id, {number}. {REMEDY}")


def _opened(folder: Path) -> Any:
    """Return the tokenizer of a folder, opened by transformers. No code of the folder runs.

    Raises UserError if transformers cannot open it.
    """
    import transformers

    path = folder / "tokenizer_config.json"
    declared = parse_object(content(path)) if path.exists() else {}
    # With a class of its own code, the files alone say what it does. A lone tokenizer.model says it all, and
    # transformers' LlamaTokenizer would ignore its normalization and take every model for BPE.
    alone = not any((folder / name).exists() for name in TOKENIZERS if name != "tokenizer.model")
    plain = "auto_map" in declared or alone
    kinds = [transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer]
    if not (folder / "tokenizer.json").exists() and (folder / "merges.txt").exists():
        # For some architectures AutoTokenizer does not look for vocab.json and merges.txt: byte-level BPE, as GPT-2's.
        named = declared.get("tokenizer_class")
        kinds.append(getattr(transformers, named if isinstance(named, str) else "", transformers.GPT2Tokenizer))
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    first: Exception | None = None
    try:
        for kind in kinds:
            try:
                opened = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                opened.backend_tokenizer.to_str()
                return opened
            except (
                Exception
            ) as error:  # tokenizers raises Exception itself, and transformers what its parsing runs into
                first = first or error
    finally:
        transformers.logging.set_verbosity(verbosity)
    assert first is not None
    raise _not_opened(folder, first) from first


def _not_opened(folder: Path, error: Exception) -> UserError:
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            tokenizers.Tokenizer.from_file(str(path))
        except Exception as cause:  # tokenizers raises Exception itself
            return UserError(f"{path}: tokenizers cannot read it ({cause}). Download it again")
    names = [name for name in READ if (folder / name).exists() and name != "generation_config.json"]
    named = [f"{NAMED}/{path.name}" for path in sorted((folder / NAMED).glob("*.jinja"))]
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    return UserError(
        f"{folder}: transformers cannot open the tokenizer of {', '.join(names + named)} ({reason}). Download them "
        "again, or export without a tokenizer: TOKENIZER=none"
    )
