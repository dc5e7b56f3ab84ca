"""Chat templates: they turn a list of messages into the text that the model was trained on."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from ..errors import UserError


def read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the chat template of an artifact; None if it has none.

    The file chat_template.jinja comes first, then `chat_template` of tokenizer_config.json: a string, or a list of
    named templates, of which "default" is used.

    Args:
        folder: the artifact's folder.
        config: the content of its tokenizer_config.json.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """Return the conversation as `template` writes it.

    Args:
        template: Jinja source, as Hugging Face's tokenizers use it.
        messages: the conversation, checked by `check_messages`.
        variables: other variables of the template, such as add_generation_prompt, tools or bos_token.

    Raises:
        UserError: the template refuses the messages, or fails.
    """
    try:
        return _compile(template).render(messages=[dict(message) for message in messages], **variables)
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"the chat template refuses these messages: {error}") from error


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


@functools.lru_cache(maxsize=8)  # parsing takes milliseconds, and every request needs the template
def _compile(template: str) -> jinja2.Template:
    """Compile a template. Templates come with the weights, so they are untrusted code: the sandbox isolates them."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks an assistant's text for training; only its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON; jinja2's own filter escapes characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
