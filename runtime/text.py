"""Text in and out: the artifact's tokenizer, its chat template, and text that arrives token by token."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from runtime.errors import UserError

REPLACEMENT = "\ufffd"  # what undecodable bytes become
LONGEST_HOLD = 64  # tokens; a character has at most 4 bytes, so that many undecodable ones are not a character to come
ALONE = 8192  # tokens whose texts are kept; a text of several languages has fewer different ones
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """tokenizer.json with what tokenizer_config.json and chat_template.jinja add to it."""

    def __init__(
        self, model: tokenizers.Tokenizer, special_tokens: Mapping[str, str], chat_template: str | None
    ) -> None:
        self.model = model
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer files of an artifact. Raises UserError where one is missing or damaged."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{folder} has no tokenizer ({path.name}); artifacts of random weights (SYNTHETIC=1) have none. Pass "
                "token ids to generate(), measure it with `python -m runtime bench`, or export a whole checkpoint"
            )
        try:
            model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
            raise UserError(f"{path}: tokenizers cannot read it ({error}). Restore it or export again") from error
        model.no_padding()
        model.no_truncation()
        config = _json_object(folder / "tokenizer_config.json")
        special = {name: _content(config[name]) for name in SPECIAL_TOKENS if config.get(name) is not None}
        return cls(model, special, _chat_template(folder, config))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; special tokens (such as bos) as the tokenizer's own post-processor adds them. Raises UserError for
        text that is none: half a surrogate pair, which is what Python makes of bytes that are not UTF-8."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at {error.start:,}"
            raise UserError(f"the text is not valid Unicode ({found}). Give it as UTF-8") from error
        return self.model.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.model.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    @functools.cached_property
    def alone(self) -> Callable[[int, bool], str]:
        """The text of one token by itself, kept: of a text that arrives token by token each is asked for again."""
        return functools.lru_cache(maxsize=ALONE)(
            lambda token, skip_special_tokens: self.model.decode([token], skip_special_tokens=skip_special_tokens)
        )

    def is_added_token(self, token: int) -> bool:
        """Whether this is a token apart (a special one, most often), which text is split at before anything else."""
        return token in self._added

    @functools.cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.model.get_added_tokens_decoder())

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as the model's chat template writes it: the text to encode without special tokens.

        messages: {"role": ..., "content": ...}. variables: further ones the template knows (tools, documents, ...).
        Raises UserError where the artifact has no template, or the messages are none or refused by the template.
        """
        check_messages(messages)
        if self.chat_template is None:
            raise UserError(
                "this artifact has no chat template. Give the prompt as plain text (generate --raw, or stream())"
            )
        names = {"tools": None, "documents": None, **self.special_tokens, **variables}
        try:
            return _compile(self.chat_template).render(
                messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **names
            )
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the chat template refuses these messages: {error}") from error

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of `render_chat`; the template writes bos and the like itself."""
        return self.encode(self.render_chat(messages, **variables), add_special_tokens=False)

    def text_stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A decoder for one sequence that arrives token by token."""
        return TextStream(self, skip_special_tokens)


class TextStream:
    """Incremental detokenisation: the pieces joined are the text of all ids, and no piece splits a character.

    Tokens are bytes, not characters: what ends in an incomplete UTF-8 sequence is held back until it is whole. Each
    piece is the difference of two decodings, of the tokens already shown and of those with the new ones, since a
    decoder may treat the first token of a sequence differently (a leading space, for one).
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []  # the last piece's tokens, then those not shown yet
        self._shown = 0  # how many of them are shown
        self._text = ""  # their decoding

    def push(self, token: int) -> str:
        """The text that this token completes; often empty."""
        self._ids.append(int(token))
        text = self._decode()
        incomplete = text.endswith(REPLACEMENT) and len(self._ids) - self._shown < LONGEST_HOLD
        if incomplete or len(text) <= len(self._text):
            return ""
        piece = text[len(self._text) :]
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        self._text = self._tokenizer.model.decode(self._ids, skip_special_tokens=self._skip)
        return piece

    def flush(self) -> str:
        """What is still held back, at the end of the sequence."""
        text = self._decode()
        piece = text[len(self._text) :]
        self._ids, self._shown, self._text = [], 0, ""
        return piece

    def _decode(self) -> str:
        if len(self._ids) == 1:
            return self._tokenizer.alone(self._ids[0], self._skip)
        return self._tokenizer.model.decode(self._ids, skip_special_tokens=self._skip)


def check_messages(messages: Any) -> None:
    """Raises UserError for what is no list of messages."""
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


@functools.lru_cache(maxsize=8)  # parsing takes milliseconds, and every request asks
def _compile(template: str) -> jinja2.Template:
    """Templates come with the weights, so they are untrusted code: sandboxed, and no access beyond their variables."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant wrote, for training: here its body only."""

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
    """JSON as it is; jinja2's own filter escapes what HTML would not take."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's: a string, or a list of named ones with a "default"."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _content(token: Any) -> str:
    """A special token, written as a string or as an AddedToken object."""
    return token["content"] if isinstance(token, dict) else token


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}). Restore it or export again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON {type(value).__name__}; needed: an object. Restore it or export again")
    return value
