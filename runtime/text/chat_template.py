"""Chat templates: they turn a list of messages into the text that the model was trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifact import hash_cache
from ..errors import UserError
from ..limited.process import LimitedProcess, LimitError, Limits, RefusedError
from ..limited.worker import environment

MAX_TEMPLATE = 1 << 18  # characters; those of well-known models have up to 20,000
PARSED = "template-1"  # in hash_cache: parsed without errors. Raise the number with a change of `environment`
# Ordinary templates need milliseconds. A context of 128k tokens holds about a megabyte of text.
LIMITS = Limits(seconds=2.0, memory=256 << 20, characters=16 << 20)


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


class ChatTemplate:
    """A chat template. Another process compiles and renders it, with limits on time, memory and output."""

    def __init__(self, source: str, where: str = "the chat template") -> None:
        """Begin to compile a template.

        Args:
            source: Jinja source, as Hugging Face's tokenizers use it.
            where: its file, for messages.

        Raises:
            UserError: the source is too long, or no process can be started.
        """
        _check_length(source, where)
        self.source = source
        self.where = where
        self._process = LimitedProcess("template", LIMITS, template=source)

    def start(self) -> None:
        """Begin to compile the template. Does not wait."""
        self._process.start()

    def check(self) -> None:
        """Wait until the template is compiled. Raises UserError with the reason if it is not valid."""
        try:
            self._process.prepare()
        except (RefusedError, LimitError) as error:
            raise _not_valid(self.where, error) from error

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Return the conversation as the template writes it.

        Args:
            messages: the conversation, checked by `check_messages`.
            variables: other variables of the template, such as add_generation_prompt, tools or bos_token.

        Raises:
            UserError: the template refuses the messages, fails, or exceeds a limit.
        """
        try:
            return self._process.ask({**variables, "messages": list(messages)})
        except RefusedError as error:
            reason = _one_line(error)
            raise UserError(
                f"the chat template refuses these messages: {reason}. Change them, or correct the template"
            ) from error
        except LimitError as error:
            raise UserError(
                f"the chat template refuses these messages: {error}. Correct the template (chat_template.jinja), or "
                "give the prompt as plain text"
            ) from error


def check_messages(messages: Any) -> None:
    """Raise UserError unless `messages` is a list of messages: [{"role": ..., "content": ...}, ...]."""
    shape = '[{"role": "user", "content": "..."}, ...]'
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise UserError(f"messages is a {type(messages).__name__}; needed: a list, {shape}")
    if not messages:
        raise UserError(f"messages is empty; needed: at least one, {shape}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"messages[{index}] is a {type(message).__name__}; needed: {shape}")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise UserError(f"messages[{index}] has the role {role!r}; needed: a string, as in {shape}")
        if not isinstance(content, (str, list)) and not (content is None and "tool_calls" in message):
            raise UserError(f"messages[{index}] has the content {content!r}; needed: a string, as in {shape}")


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
    _check_length(source, str(path))
    import jinja2

    try:
        environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise _not_valid(str(path), f"line {error.lineno}: {error.message}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise _not_valid(str(path), "nested too deeply" if isinstance(error, RecursionError) else error) from error
    if hash_cache.settled(before, began) and hash_cache.key(path.stat(), PARSED) == mine:
        hash_cache.remember([mine])


def _check_length(source: str, where: str) -> None:
    if len(source) > MAX_TEMPLATE:
        raise _not_valid(where, f"it has {len(source):,} characters; at most {MAX_TEMPLATE:,} are possible")


def _one_line(reason: object) -> str:
    """The reason in printable characters, without a full stop. A template may raise any text."""
    return "".join(c if c.isprintable() else " " for c in str(reason)).strip().rstrip(".")


def _not_valid(where: str, reason: object) -> UserError:
    text = _one_line(reason)
    return UserError(
        f"{where}: the chat template cannot be compiled: {text}. Correct it, or delete it to use the model without "
        "chats"
    )
