"""Collect the tokenizer files of a Hugging Face folder for an artifact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellama.artifact.json_reader import parse_object, read_bytes
from edgellama.errors import UserError
from edgellama.text.chat_template import ChatTemplate, decode_template, template_of_config

from ..network.config import LlamaConfig

LARGEST = 256 << 20  # bytes of a file; tokenizer.json of Gemma has 33 MB
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


def folder_tokenizer_files(folder: Path, config: LlamaConfig) -> dict[str, bytes]:
    """Return the tokenizer files, name -> content. Existing files are copied unchanged; missing ones are derived.

    If the folder has only a SentencePiece or tiktoken file, transformers converts it. Raises UserError if there is no
    tokenizer.json and transformers cannot create one.
    """
    files = {name: _content(folder / name) for name in COPIED if (folder / name).exists()}
    if "tokenizer.json" not in files:
        files = {**_convert(folder), **files}
    files.setdefault("tokenizer_config.json", b"{}\n")
    if "chat_template.jinja" not in files and (
        template := template_of_config(
            parse_object(files["tokenizer_config.json"]), str(folder / "tokenizer_config.json")
        )
    ):
        files["chat_template.jinja"] = template.encode()
    files.setdefault("generation_config.json", to_json(generation_config(config)))
    return files


def _content(path: Path) -> bytes:
    """Return the content of a file. JSON is checked, except in tokenizer.json, which the tokenizers library reads.

    Raises UserError if it cannot be read, or is damaged.
    """
    try:
        data = read_bytes(path, LARGEST)
        if path.suffix == ".json" and path.name != "tokenizer.json":
            parse_object(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}. Download it again") from error
    return data


def generation_config(config: LlamaConfig) -> dict[str, Any]:
    """Return a generation config with the token ids of the config."""
    return {key: value for key, value in config.to_dict().items() if key.endswith("_token_id") and value is not None}


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def check_chat_template(files: Mapping[str, bytes], where: str) -> None:
    """Compile the chat template of an artifact's files, if there is one.

    Args:
        files: name -> content.
        where: the checkpoint, for messages.

    Raises:
        UserError: the template cannot be compiled, or is no text.
    """
    data = files.get("chat_template.jinja")
    if data is not None:
        ChatTemplate(decode_template(data, where), where).check()


def _convert(folder: Path) -> dict[str, bytes]:
    if not any((folder / name).exists() for name in ("tokenizer.model", "vocab.json")):
        raise UserError(f"{folder} has no tokenizer.json; download the checkpoint again, with its tokenizer")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(
            f"{folder} has no tokenizer.json, and transformers cannot create one from its tokenizer.model ({error}); "
            "install sentencepiece and tiktoken, or download tokenizer.json from the model's page"
        ) from error
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        return {name: (Path(made) / name).read_bytes() for name in COPIED if (Path(made) / name).exists()}
