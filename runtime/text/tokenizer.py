"""The artifact's tokenizer: text to token ids and back, and chats through the model's chat template."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from ..artifact.json_reader import read_object
from ..errors import UserError, shown
from .components import byte_letters, components
from .detokenizer import REPLACEMENT, TextStream
from .length_bound import LengthBound
from .template_files import decode_template, read_chat_templates

if TYPE_CHECKING:
    from .chat_template import ChatTemplate

CACHED_TOKENS = 8192  # tokens whose texts are kept; a text of several languages has fewer different ones
REMEDY = "Restore it or export again"
LONG = 4096  # characters that take a millisecond to encode
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # a byte as SentencePiece writes it
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A tokenizer: tokenizer.json, and what tokenizer_config.json and chat_template.jinja add to it.

    Attributes:
        model: the tokenizer of the `tokenizers` package.
        special_tokens: text of the named special tokens, such as {"bos_token": "<s>"}.
        chat_template: Jinja source, or None.
        named_templates: other Jinja sources by name, of which chats with tools use "tool_use".
    """

    def __init__(
        self,
        model: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | None,
        named_templates: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        self.named_templates = dict(named_templates or {})
        self._templates: dict[str, ChatTemplate] = {}  # by their source

    @classmethod
    def from_folder(cls, folder: str | Path, remedy: str = REMEDY) -> Tokenizer:
        """Read the tokenizer files of an artifact.

        Args:
            folder: the artifact.
            remedy: ends the message of an error about a damaged file.

        Raises:
            UserError: tokenizer.json is missing, a file is damaged, or the chat template cannot be compiled.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{folder} has no tokenizer ({path.name}), so it takes and gives token ids, not text; artifacts of "
                "random weights (SYNTHETIC=1) and of TOKENIZER=none have none. Pass token ids to generate(), measure "
                "it with `edgellama bench`, or export a checkpoint with its tokenizer"
            )
        config = _json_object(folder / "tokenizer_config.json", remedy)
        named = read_chat_templates(folder, config)
        source = named.pop("default", None)
        filed = folder / "chat_template.jinja"
        where = filed if filed.is_file() else folder / "tokenizer_config.json"
        template = None if source is None else _template(source, str(where))
        if template is not None:
            template.start()  # it compiles while the tokenizer is read
        try:
            model = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise UserError(f"{path}: tokenizers cannot read it ({_reason(error)}). {remedy}") from error
        model.no_padding()
        model.no_truncation()
        special = {name: _content(config[name]) for name in SPECIAL_TOKENS if config.get(name) is not None}
        if wrong := [name for name, token in special.items() if not isinstance(token, str)]:
            raise UserError(
                f"{folder / 'tokenizer_config.json'}: {wrong[0]} is {shown(config[wrong[0]])}; needed: text, or an "
                f"object with the text as its content. {remedy}"
            )
        made = cls(model, special, source, named)
        if template is not None:
            template.check()
            made._templates[template.source] = template
        return made

    def check_templates(self) -> None:
        """Compile all chat templates, also those that `from_folder` leaves until they are needed.

        Raises:
            UserError: one of them cannot be compiled.
        """
        for name, source in self.named_templates.items():
            _template(source, f"the chat template {name!r}").check()

    def use_chat_template(self, path: str | Path) -> None:
        """Use the chat template of a file instead of the artifact's, also for chats with tools.

        Raises:
            UserError: the file cannot be read, is not UTF-8, or is no template.
        """
        try:
            source = decode_template(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"the chat template {path} cannot be read ({error.strerror}). Name another file") from error
        template = _template(source, str(path))
        template.check()
        self._templates[source] = template
        self.chat_template = source
        self.named_templates.pop("tool_use", None)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: the text.
            add_special_tokens: add special tokens such as bos, as the tokenizer's post-processor does.

        Raises:
            UserError: the text holds half a surrogate pair, which Python makes of bytes that are not UTF-8; or the
                tokenizer is damaged and cannot encode this text.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at {error.start:,}"
            raise UserError(f"the text is not valid Unicode ({found}). Give it as UTF-8") from error
        try:
            if len(text) < LONG:
                return self.model.encode(text, add_special_tokens=add_special_tokens).ids
            # Encoding a batch lets Python's other threads run, a single text does not. It starts native threads for it.
            return self.model.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise UserError(f"tokenizer.json cannot encode this text ({_reason(error)}). {REMEDY}") from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids.

        Args:
            ids: the token ids.
            skip_special_tokens: leave special tokens out of the text.

        Raises:
            UserError: the tokenizer is damaged and cannot decode these ids.
        """
        numbers = [int(i) for i in ids]
        try:
            return self.model.decode(numbers, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise UserError(f"tokenizer.json cannot decode these token ids ({_reason(error)}). {REMEDY}") from error

    def fewest_tokens(self, text: str) -> int:
        """Return a number of tokens that `text` has at least, without encoding it; 0 if there is no bound."""
        return self._length_bound.fewest_tokens(text)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the conversation as the model's chat template writes it: a text to encode without special tokens.

        Args:
            messages: [{"role": ..., "content": ...}, ...].
            add_generation_prompt: end with the beginning of the assistant's answer.
            variables: further variables of the template (tools, documents, ...). With tools the template "tool_use" is
                used, if there is one. `chat_template` is the name of another one.

        Raises:
            UserError: the artifact has no such chat template, `messages` is no list of messages, or the template
                refuses them.
        """
        from .chat_template import check_messages

        check_messages(messages)
        source = self._template_source(variables.pop("chat_template", None), variables.get("tools"))
        defaults = {"tools": None, "documents": None, **self.special_tokens}
        named = {**defaults, **variables, "add_generation_prompt": add_generation_prompt}
        if source not in self._templates:
            self._templates[source] = _template(source)
        return self._templates[source].render(messages, named)

    def template_source(self, with_tools: bool) -> str:
        """Return the Jinja source of the chat template that chats use, with tools or without.

        Raises:
            UserError: the artifact has no such chat template.
        """
        return self._template_source(None, [] if with_tools else None)

    def special_ids(self, texts: Sequence[str]) -> dict[int, str]:
        """Return those of the texts that are special tokens, by id."""
        found = {self.model.token_to_id(text): text for text in texts}
        return {token: text for token, text in found.items() if token is not None and self.is_special_token(token)}

    def _template_source(self, name: str | None, tools: Any) -> str:
        """Return the source of the template called `name`; without a name, of the one for these tools."""
        templates = self.named_templates
        if self.chat_template is not None:
            templates = {**templates, "default": self.chat_template}
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in templates else "default"
        if name in templates:
            return templates[name]
        if templates:
            raise UserError(f"this artifact has no chat template {name!r}; it has {', '.join(map(repr, templates))}")
        raise UserError(
            "this artifact has no chat template. Give the prompt as plain text (generate --raw, or stream())"
        )

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Return the token ids of `render_chat`; the template itself writes bos and similar tokens."""
        return self.encode(self.render_chat(messages, **variables), add_special_tokens=False)

    def batch_decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """Return the text of each row of token ids; arguments and errors are those of `decode`."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """Return a conversation as the chat template writes it; names and defaults are those of transformers.

        Args:
            conversation: [{"role": ..., "content": ...}, ...].
            tools: for the template.
            add_generation_prompt: end with the beginning of the assistant's answer.
            tokenize: return token ids; False returns the text.
            return_tensors: None for ids [n] in a list, "np" for an array [1, n], "pt" for a torch tensor [1, n].
            return_dict: return {"input_ids": ids, "attention_mask": ones}; False returns the ids.
            variables: further variables of the template.

        Raises:
            UserError: as `render_chat`, or return_tensors is another value.
        """
        variables = {"tools": tools, "add_generation_prompt": add_generation_prompt, **variables}
        if not tokenize:
            return self.render_chat(conversation, **variables)
        found: Any = self.encode_chat(conversation, **variables)
        found = {"input_ids": found, "attention_mask": [1] * len(found)}
        if return_tensors in ("np", "pt"):
            library: Any = importlib.import_module("numpy" if return_tensors == "np" else "torch")
            make = library.array if return_tensors == "np" else library.tensor
            found = {name: make([ids]) for name, ids in found.items()}
        elif return_tensors is not None:
            raise UserError(f"return_tensors is {shown(return_tensors)}; needed: None, 'np' or 'pt'")
        return found if return_dict else found["input_ids"]

    def text_stream(self, *, skip_special_tokens: bool = True, prefix_ids: Sequence[int] = ()) -> TextStream:
        """Return a decoder for one sequence that arrives token by token.

        Args:
            skip_special_tokens: leave special tokens out of the text.
            prefix_ids: the tokens of the text that the sequence continues. Some decoders drop the space at the
                beginning of a text; the first word of a continuation keeps it.
        """
        return TextStream(self, skip_special_tokens, prefix_ids)

    @functools.cached_property
    def decode_token(self) -> Callable[[int, bool], str]:
        """A cached function (token, skip_special_tokens) -> the text of this token by itself."""
        return functools.lru_cache(maxsize=CACHED_TOKENS)(
            lambda token, skip_special_tokens: self.decode([token], skip_special_tokens=skip_special_tokens)
        )

    def token_bytes(self, token: int, *, first: bool = False) -> bytes:
        """Return the bytes that a token stands for, maybe a part of a character; empty for an id without a token.

        Args:
            token: a token id.
            first: the token begins a text; some decoders drop a space there.
        """
        alone = self.decode_token(token, False) if first else REPLACEMENT
        return self._bytes(token) if REPLACEMENT in alone else alone.encode()

    def is_added_token(self, token: int) -> bool:
        """Whether the tokenizer splits text at this token before anything else; most such tokens are special."""
        return token in self._added

    def is_special_token(self, token: int) -> bool:
        """Whether skip_special_tokens leaves this token out of a text."""
        return token in self._special

    @functools.cached_property
    def special_texts(self) -> dict[int, str]:
        """The text of each special token, by id."""
        return {token: added.content for token, added in self.model.get_added_tokens_decoder().items() if added.special}

    @functools.cached_property
    def _length_bound(self) -> LengthBound:
        return LengthBound(self.model)

    @functools.cached_property
    def _bytes(self) -> Callable[[int], bytes]:
        return functools.lru_cache(maxsize=CACHED_TOKENS)(self._spelled)

    def _spelled(self, token: int) -> bytes:
        written = self.model.id_to_token(token)
        if written is None:
            return b""
        if "ByteLevel" in self._decoders:
            letters = byte_letters()
            known = all(letter in letters for letter in written)  # some special tokens have other letters
            return bytes(letters[letter] for letter in written) if known else written.encode()
        byte = BYTE_TOKEN.fullmatch(written) if "ByteFallback" in self._decoders else None
        if byte is not None:
            return bytes.fromhex(byte[1])
        twice = self.decode([token, token], skip_special_tokens=False)
        return twice[len(self.decode_token(token, False)) :].encode()  # its text behind another token

    @functools.cached_property
    def _decoders(self) -> frozenset[str]:
        return frozenset(part["type"] for part in components(self.model.decoder))

    @functools.cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.model.get_added_tokens_decoder())

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.special_texts)


def _template(source: str, where: str = "the chat template") -> ChatTemplate:
    from .chat_template import ChatTemplate  # imported late: it starts processes, and many models need none

    return ChatTemplate(source, where)


def _is_of_tokenizers(error: BaseException) -> bool:
    """Whether the tokenizers package raised it: a bare Exception, or a PanicException, which is no Exception."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _content(token: Any) -> Any:
    """The text of a special token, which is written as a string or as an AddedToken object; else what it is."""
    return token.get("content") if isinstance(token, dict) else token


def _json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object of a file; empty if there is no such file."""
    try:
        return read_object(path, remedy)
    except FileNotFoundError:
        return {}
