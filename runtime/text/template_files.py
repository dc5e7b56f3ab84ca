"""The files with chat templates: reads them, and checks their syntax without running anything of them.

Loading a model needs this file only; a chat needs `chat_template.py`, which starts a process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import hash_cache
from ..errors import UserError

MAX_TEMPLATE = 1 << 18  # characters; those of well-known models have up to 20,000
PARSED = "template-1"  # in hash_cache: parsed without errors. Raise the number with a change of `environment`


def read_chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates of an artifact by name: "default" and maybe others, such as "tool_use".

    The file chat_template.jinja comes first, then `chat_template` of tokenizer_config.json: a string, or a list of
    named templates.

    Args:
        folder: the artifact's folder.
        config: the content of its tokenizer_config.json.

    Raises:
        UserError: a file is damaged.
    """
    templates = templates_of_config(config, str(folder / "tokenizer_config.json"))
    path = folder / "chat_template.jinja"
    if path.is_file():
        templates["default"] = decode_template(path.read_bytes(), str(path))
    return templates


def decode_template(data: bytes, where: str) -> str:
    """Return the text of a chat template's file. Raises UserError with the file's name if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: the chat template is not UTF-8 ({error}). Restore the file") from error


def templates_of_config(config: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the chat templates of a tokenizer_config.json by name; a single one is "default".

    Raises UserError with the file's name if `chat_template` has another form.
    """
    given = config.get("chat_template")
    if given is None:
        return {}
    named = [{"name": "default", "template": given}] if isinstance(given, str) else given
    if not isinstance(named, list) or not all(_is_named(entry) for entry in named):
        raise UserError(
            f"{where}: chat_template is a JSON {type(given).__name__}; needed: a text, or a list of named templates, "
            '[{"name": "default", "template": "..."}, ...]'
        )
    return {entry["name"]: entry["template"] for entry in named}


def _is_named(entry: Any) -> bool:
    return isinstance(entry, Mapping) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def check_syntax(folder: Path) -> None:
    """Raise UserError if the chat_template.jinja of an artifact has a syntax error.

    Nothing of the template runs. Compiling it would: jinja2 computes constants then. A template without errors is
    remembered as a file with the right hash is, because importing jinja2 takes a tenth of the time to load a model.
    """
    path = folder / "chat_template.jinja"
    if not path.is_file():
        return
    began = time.time()
    before = path.stat()
    mine = hash_cache.key(before, PARSED)
    if mine in hash_cache.remembered():
        return
    source = decode_template(path.read_bytes(), str(path))
    check_length(source, str(path))
    import jinja2  # imported late, as few loads need it

    from ..limited.worker import environment

    try:
        environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise not_valid(str(path), f"line {error.lineno}: {error.message}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise not_valid(str(path), "nested too deeply" if isinstance(error, RecursionError) else error) from error
    if hash_cache.settled(before, began) and hash_cache.key(path.stat(), PARSED) == mine:
        hash_cache.remember([mine])


def check_length(source: str, where: str) -> None:
    """Raise UserError if a template is too long."""
    if len(source) > MAX_TEMPLATE:
        raise not_valid(where, f"it has {len(source):,} characters; at most {MAX_TEMPLATE:,} are possible")


def one_line(reason: object) -> str:
    """Return the reason in printable characters, without a full stop. A template may raise any text."""
    return "".join(c if c.isprintable() else " " for c in str(reason)).strip().rstrip(".")


def not_valid(where: str, reason: object) -> UserError:
    """Return the error for a template that cannot be compiled."""
    text = one_line(reason)
    return UserError(
        f"{where}: the chat template cannot be compiled: {text}. Correct it, or delete it to use the model without "
        "chats"
    )
