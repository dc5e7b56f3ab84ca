"""Chat templates: they turn a list of messages into the text that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from ..limited.process import LimitedProcess, LimitError, Limits, RefusedError
from .template_files import check_length, not_valid, one_line

# Ordinary templates need milliseconds. A context of 128k tokens holds about a megabyte of text.
LIMITS = Limits(seconds=2.0, memory=256 << 20, characters=16 << 20)


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
        check_length(source, where)
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
            raise not_valid(self.where, error) from error

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
            reason = one_line(error)
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
