"""Text in and out: the artifact's tokenizer, its chat template, and text that arrives token by token."""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers
from tokenizers import models, pre_tokenizers

from runtime.errors import UserError

REPLACEMENT = "\ufffd"  # what undecodable bytes become
LONGEST_HOLD = 64  # tokens; a character has at most 4 bytes, so that many undecodable ones are not a character to come
NEAR = 8  # tokens before a text that say how it begins: a character has at most 4
ALONE = 8192  # tokens whose texts are kept; a text of several languages has fewer different ones
LONG = 4096  # characters that take a millisecond to encode
CONTINUATION = bytes(range(0x80, 0xC0))  # UTF-8's bytes of a character behind its first
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # a byte as SentencePiece writes it
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
        if len(text) < LONG:
            return self.model.encode(text, add_special_tokens=add_special_tokens).ids
        # a batch, unlike a single text, lets Python's other threads run meanwhile; it starts native threads to do so
        return self.model.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def fewest_tokens(self, text: str) -> int:
        """How many tokens `text` has at least, found without encoding it; 0 where this tokenizer does not tell."""
        if self._reach is None:
            return 0
        reach, uncounted = self._reach
        return math.ceil(len(text.encode(errors="replace").translate(None, uncounted)) / reach)

    @functools.cached_property
    def _reach(self) -> tuple[int, bytes] | None:
        """Characters of a text that one token stands for at most, and which bytes of a text not to count as characters;
        None where a token may stand for any number."""
        if any(token.lstrip or token.rstrip for token in self.model.get_added_tokens_decoder().values()):
            return None  # it takes in the whitespace beside it
        normalizers, splitters = _parts(self.model.normalizer), _parts(self.model.pre_tokenizer)
        shrunk = [_shrinks(part) for part in normalizers]
        vocabulary = self.model.get_vocab()
        dropped = self._dropped(vocabulary, splitters)
        if None in shrunk or not all(map(_keeps, splitters)) or dropped is None or (dropped and normalizers):
            return None
        return max(map(len, vocabulary)) * math.prod(filter(None, shrunk)), CONTINUATION + dropped

    def _dropped(self, vocabulary: Mapping[str, int], splitters: Sequence[Mapping[str, Any]]) -> bytes | None:
        """Bytes of a text that become no token: SmolLM2's vocabulary, for one, lacks some that no text of its training
        had. None where one unknown token may stand for any number of characters."""
        model = self.model.model
        if not isinstance(model, models.BPE):
            return None
        if any(part["type"] == "ByteLevel" for part in splitters):
            missing = bytes(byte for letter, byte in _byte_letters().items() if letter not in vocabulary)
            return None if missing and model.unk_token is not None and model.fuse_unk else missing
        whole = model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        return b"" if whole else None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.model.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    @functools.cached_property
    def alone(self) -> Callable[[int, bool], str]:
        """The text of one token by itself, kept: of a text that arrives token by token each is asked for again."""
        return functools.lru_cache(maxsize=ALONE)(
            lambda token, skip_special_tokens: self.model.decode([token], skip_special_tokens=skip_special_tokens)
        )

    def token_bytes(self, token: int, *, first: bool = False) -> bytes:
        """What a token stands for in a text, which may be a part of a character; nothing for an id without a token.

        first: at the beginning of a text, where some decoders drop a space.
        """
        alone = self.alone(token, False) if first else REPLACEMENT
        return self._bytes(token) if REPLACEMENT in alone else alone.encode()

    @functools.cached_property
    def _bytes(self) -> Callable[[int], bytes]:
        return functools.lru_cache(maxsize=ALONE)(self._spelled)

    def _spelled(self, token: int) -> bytes:
        written = self.model.id_to_token(token)
        if written is None:
            return b""
        if "ByteLevel" in self._decoders:
            letters = _byte_letters()
            known = all(letter in letters for letter in written)  # not those of some special tokens
            return bytes(letters[letter] for letter in written) if known else written.encode()
        byte = BYTE_TOKEN.fullmatch(written) if "ByteFallback" in self._decoders else None
        if byte is not None:
            return bytes.fromhex(byte[1])
        twice = self.decode([token, token], skip_special_tokens=False)
        return twice[len(self.alone(token, False)) :].encode()  # as it is behind another one

    @functools.cached_property
    def _decoders(self) -> frozenset[str]:
        return frozenset(part["type"] for part in _parts(self.model.decoder))

    def is_added_token(self, token: int) -> bool:
        """Whether this is a token apart (a special one, most often), which text is split at before anything else."""
        return token in self._added

    def is_special_token(self, token: int) -> bool:
        """Whether this is one of the tokens that skip_special_tokens leaves out of a text."""
        return token in self._special

    @functools.cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.model.get_added_tokens_decoder())

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(token for token, added in self.model.get_added_tokens_decoder().items() if added.special)

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

    def text_stream(self, *, skip_special_tokens: bool = True, behind: Sequence[int] = ()) -> TextStream:
        """A decoder for one sequence that arrives token by token.

        behind: the tokens of the text that it goes on with. Some decoders drop the space that a text begins with, and
        the first word behind another has one to keep.
        """
        return TextStream(self, skip_special_tokens, behind)


class TextStream:
    """Incremental detokenisation: the pieces joined are the text of all ids, and no piece splits a character.

    Tokens are bytes, not characters: what ends in an incomplete UTF-8 sequence is held back until it is whole. Each
    piece is the difference of two decodings, of the tokens already shown and of those with the new ones, since a
    decoder may treat the first token of a sequence differently (a leading space, for one).

    held: whole characters that are held back with the incomplete one behind them.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, behind: Sequence[int] = ()) -> None:
        self.held = 0
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids = [int(i) for i in behind[-NEAR:]]  # the last piece's tokens, then those not shown yet
        self._shown = len(self._ids)  # how many of them are shown
        self._text = self._decode() if self._ids else ""  # their decoding
        if self._text.endswith(REPLACEMENT):  # cut within a character, whose rest is no text of its own
            self._ids, self._shown, self._text = [], 0, ""

    def push(self, token: int) -> str:
        """The text that this token completes; often empty."""
        self._ids.append(int(token))
        text = self._decode()
        incomplete = text.endswith(REPLACEMENT) and len(self._ids) - self._shown < LONGEST_HOLD
        if incomplete or len(text) <= len(self._text):
            self.held = max(0, len(text.rstrip(REPLACEMENT)) - len(self._text))
            return ""
        piece = text[len(self._text) :]
        self.held = 0
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        self._text = self._tokenizer.model.decode(self._ids, skip_special_tokens=self._skip)
        return piece

    def flush(self) -> str:
        """What is still held back, at the end of the sequence."""
        text = self._decode()
        piece = text[len(self._text) :]
        self._ids, self._shown, self._text, self.held = [], 0, "", 0
        return piece

    def _decode(self) -> str:
        if len(self._ids) == 1:
            return self._tokenizer.alone(self._ids[0], self._skip)
        return self._tokenizer.model.decode(self._ids, skip_special_tokens=self._skip)


@functools.cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's letter of each byte: printable ones are their own, the others have those from U+0100 on, in order."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(letters[len(own) :], others, strict=True))


def _parts(component: Any) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as tokenizer.json describes it: each part of a sequence, or the one."""

    def flat(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if part["type"] != "Sequence":
            yield part
        for inner in next((value for value in part.values() if isinstance(value, list)), []):
            yield from flat(inner)

    return [] if component is None else list(flat(json.loads(component.__getstate__())))


def _shrinks(normalizer: Mapping[str, Any]) -> int | None:
    """How many characters it may make one of; None where that is not known."""
    kind = normalizer["type"]
    if kind == "NFC":
        return 4  # no character has a longer canonical decomposition (Unicode's UAX #15)
    if kind == "Replace":
        string = normalizer["pattern"].get("String")
        return 1 if string is not None and len(normalizer["content"]) >= len(string) else None
    return 1 if kind in ("Prepend", "NFD") else None


def _keeps(splitter: Mapping[str, Any]) -> bool:
    """Whether this pre-tokenizer leaves every character in the text."""
    known = splitter["type"] in ("ByteLevel", "Metaspace", "Digits", "Split", "Punctuation")
    return known and splitter.get("behavior") != "Removed"


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
