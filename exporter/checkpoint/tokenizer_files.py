"""Collect the tokenizer files of a Hugging Face folder for an artifact."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellama.artifact.json_reader import parse_object, read_bytes
from edgellama.errors import UserError
from edgellama.generation.config import GenerationConfig
from edgellama.text.chat_template import ChatTemplate, decode_template, template_of_config
from edgellama.text.tokenizer import Tokenizer

from ..network.config import LlamaConfig

REMEDY = "Download the checkpoint again, or correct the file"
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
        raise UserError(f"{path}: cannot be read ({error.strerror}). {REMEDY}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}. {REMEDY}") from error
    return data


def generation_config(config: LlamaConfig) -> dict[str, Any]:
    """Return a generation config with the token ids of the config."""
    return {key: value for key, value in config.to_dict().items() if key.endswith("_token_id") and value is not None}


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def check_text_files(files: Mapping[str, bytes], where: str) -> None:
    """Load the tokenizer, the chat template and the generation config as the runtime will.

    Args:
        files: name -> content, of an artifact.
        where: the checkpoint, for messages.

    Raises:
        UserError: the runtime cannot load one of them.
    """
    template = files.get("chat_template.jinja")
    if template is not None and "tokenizer.json" not in files:
        ChatTemplate(decode_template(template, where), where).check()
    with tempfile.TemporaryDirectory() as made:
        for name, data in files.items():
            (Path(made) / name).write_bytes(data)
        try:
            if "tokenizer.json" in files:  # random weights have none
                Tokenizer.from_folder(made, REMEDY)
            GenerationConfig.of_file(Path(made) / "generation_config.json", {}, REMEDY)
        except UserError as error:
            raise UserError(f"{where}: {str(error).replace(f'{made}{os.sep}', '')}") from error


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
