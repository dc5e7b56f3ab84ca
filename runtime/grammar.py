"""Constrained output: logits processors for a JSON schema or a regular expression that the new text must match.

from edgellama.grammar import JsonSchema, Regex
model.generate(input_ids, logits_processor=Regex(r"(yes|no)", model), max_new_tokens=8)

The grammars are llguidance's (the `grammar` extra). At each step only tokens that can continue the text keep their
score, and eos only if the text is complete. A text that max_new_tokens ends (finish_reason "length") is only a valid
beginning.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .errors import UserError
from .grammar_errors import reason
from .limited.process import LimitedProcess, LimitError, Limits, RefusedError
from .model import LlamaForCausalLM
from .text.tokenizer import Tokenizer

# Between JSON tokens: a line break and its indentation, or a space. Without a bound a model may write only white space.
JSON_WHITESPACE = r"\n? {0,16}"
# Native code compiles a grammar, and cannot be interrupted. So a process with limits compiles each grammar first.
TRIAL = Limits(seconds=2.0, memory=384 << 20, characters=0)
MAX_CHARACTERS = 1 << 20  # of a schema's JSON
MAX_PROPERTIES = 2000  # of all objects of a schema: the time grows with the square
MAX_PATTERN = 1 << 16  # characters of a regular expression
PARSER_LIMITS = {"initial_lexer_fuel": 500_000, "step_lexer_fuel": 100_000, "max_lexer_states": 50_000}
ENGINE_OPTIONS = (
    "x-guidance"  # a keyword that would change how the library reads a schema; unknown keywords are ignored
)
PROPERTIES = ("properties", "patternProperties")  # keywords whose value has a schema for each name


class GrammarTokenizer:
    """The tokenizer in the form of the grammar library. To make one takes about a second; grammars can share it.

    Attributes:
        native: llguidance's tokenizer.
        vocab_size: width of the logits.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: Sequence[int]) -> None:
        """Convert a tokenizer.

        Args:
            tokenizer: the artifact's.
            vocab_size: width of the logits.
            eos_token_id: the ids that may end a text.

        Raises:
            UserError: llguidance is missing or does not support this tokenizer, or eos_token_id is empty.
        """
        if not eos_token_id:
            raise UserError(
                "constrained output ends with an eos token, and eos_token_id is empty. Give at least one id"
            )
        self.library = _library()
        self._trial = LimitedProcess("grammar", TRIAL, parser_limits=PARSER_LIMITS)
        self._trial.start()  # while the tokenizer is converted
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        known = tokenizer.model.get_vocab_size()
        try:
            self.native = self.library.LLTokenizer(
                tokenizer.model.to_str(), n_vocab=max(vocab_size, known), eos_token=list(eos_token_id)
            )
        except ValueError as error:
            raise UserError(f"llguidance cannot use this artifact's tokenizer ({error})") from error

    def try_grammar(self, grammar: str, what: str) -> None:
        """Raise UserError unless the grammar can be compiled within the limits.

        Args:
            grammar: in llguidance's own form.
            what: its name in messages.
        """
        try:
            self._trial.ask({"grammar": grammar})
        except RefusedError as error:
            raise UserError(f"{what}: {reason(str(error))}") from error
        except LimitError as error:
            raise UserError(f"{what}: {error} to compile. Simplify it") from error

    def special_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Return the ids of the texts that are tokens which no text in a grammar matches."""
        ids = {text: self._tokenizer.model.token_to_id(text) for text in texts}
        return {text: token for text, token in ids.items() if token is not None and self.native.is_special_token(token)}

    @classmethod
    def of(cls, model: LlamaForCausalLM, eos_token_id: Sequence[int] | None = None) -> GrammarTokenizer:
        """Convert the tokenizer of a model.

        Args:
            model: gives the tokenizer.
            eos_token_id: as given to generate(); None takes the artifact's.

        Raises:
            UserError: as the constructor.
        """
        eos = model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        return cls(model.tokenizer, model.engine.vocab_size, eos)


class GrammarState(NamedTuple):
    """A position in a grammar, and which tokens are allowed there: boolean [V]."""

    matcher: Any
    allowed: np.ndarray


State = GrammarState | None  # None: the text has left the grammar


class Grammar:
    """A logits processor that sets the scores of tokens that the grammar excludes to -inf; base of the classes below.

    A row that equals a row of the last call plus one token continues from there, so rows may be reordered (beam search)
    or left out. Any other row is a prompt, after which the grammar begins. A row that continued with an excluded token
    (a beam of probability 0) has left the grammar, and keeps its scores.
    """

    takes_arrays = True  # also if the prompt is a torch tensor

    def __init__(
        self, what: str, grammar: str, source: LlamaForCausalLM | GrammarTokenizer, trial: str | None = None
    ) -> None:
        """Begin a grammar.

        Args:
            what: its name in messages.
            grammar: in llguidance's own form.
            source: the model, or a GrammarTokenizer.
            trial: the grammar without token ids, which is compiled first; None if it has none.

        Raises:
            UserError: the grammar is not valid.
        """
        self._tokenizer = source if isinstance(source, GrammarTokenizer) else GrammarTokenizer.of(source)
        library = self._tokenizer.library
        self._tokenizer.try_grammar(grammar if trial is None else trial, what)
        limits = library.LLParserLimits(**PARSER_LIMITS)
        start = library.LLMatcher(self._tokenizer.native, grammar, log_level=0, limits=limits)
        self._what = what
        self._states: dict[bytes, State] = {}  # of the last call's rows, by their ids
        if start.is_error():
            raise UserError(f"{what}: {_reason(start)}")
        self._first = self._step(start)  # a part of the compilation, of up to a second

    def copy(self) -> Grammar:
        """Return another processor for the same grammar, without compiling it again."""
        made = copy.copy(self)
        made._states = {}
        return made

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the scores, changed in place.

        Args:
            input_ids: int64 [rows, n].
            scores: float32 [rows, V].

        Raises:
            UserError: the grammar cannot be followed further.
        """
        states: dict[bytes, State] = {}
        for text, row in zip(np.ascontiguousarray(input_ids), scores, strict=True):
            if row.any():  # zeros: the row has ended
                state = self._after(text)
                states[text.tobytes()] = state
                if state is not None:
                    row[~state.allowed] = -np.inf
        self._states = states
        return scores

    def _after(self, text: np.ndarray) -> State:
        """Return the state after this text: one token after a row of the last call, or the grammar's beginning."""
        before, token = text[:-1].tobytes(), int(text[-1])
        if before not in self._states:
            return self._first
        state = self._states[before]
        if state is None or not state.allowed[token]:
            return None
        matcher = state.matcher.deep_copy()
        matcher.consume_token(token)
        return self._step(matcher)

    def _step(self, matcher: Any) -> GrammarState:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise UserError(f"{self._what}: the text cannot continue: {_reason(matcher)}")
        allowed = np.zeros(self._tokenizer.vocab_size, bool)
        unpacked = np.unpackbits(bits, count=min(8 * bits.size, allowed.size), bitorder="little")
        allowed[: unpacked.size] = unpacked
        return GrammarState(matcher, allowed)


class JsonSchema(Grammar):
    """Requires the new text to be JSON that fits a schema. `True` and {} fit any JSON value."""

    def __init__(
        self,
        schema: Mapping[str, Any] | bool | str,
        source: LlamaForCausalLM | GrammarTokenizer,
        what: str = "JSON schema",
    ) -> None:
        """Compile a schema.

        Args:
            schema: the schema, or its JSON text.
            source: the model, or a GrammarTokenizer.
            what: its name in messages.

        Raises:
            UserError: this is no schema, it contradicts itself, or it uses a keyword that llguidance does not support.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise UserError(f"{what}: not valid JSON ({error}). Correct it") from error
            except RecursionError as error:
                raise UserError(f"{what}: the schema is nested too deeply. Simplify it") from error
        if not isinstance(schema, (Mapping, bool)):
            raise UserError(f"{what}: a JSON {type(schema).__name__}. Give an object, or true")
        tokenizer = source if isinstance(source, GrammarTokenizer) else GrammarTokenizer.of(source)
        try:
            text = schema_text(schema, what)
            grammar = tokenizer.library.LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": JSON_WHITESPACE}
            )
        except RecursionError as error:
            raise UserError(f"{what}: the schema is nested too deeply. Simplify it") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}: {reason(str(error))}") from error
        super().__init__(what, grammar, tokenizer)


class Regex(Grammar):
    """Requires the new text to match a whole regular expression, as re.fullmatch does.

    The syntax is that of Rust's regex crate: Python's without look-around, back references and word boundaries.
    """

    def __init__(
        self, pattern: str, source: LlamaForCausalLM | GrammarTokenizer, what: str = "regular expression"
    ) -> None:
        """Compile an expression.

        Args:
            pattern: the expression.
            source: the model, or a GrammarTokenizer.
            what: its name in messages.

        Raises:
            UserError: the expression is not valid.
        """
        if len(pattern) > MAX_PATTERN:
            raise UserError(
                f"{what}: it has {len(pattern):,} characters; at most {MAX_PATTERN:,} are possible. Shorten it"
            )
        try:
            pattern.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{what}: it is not Unicode text ({error}). Correct it") from error
        tokenizer = source if isinstance(source, GrammarTokenizer) else GrammarTokenizer.of(source)
        super().__init__(what, tokenizer.library.LLMatcher.grammar_from_regex(pattern), tokenizer)


class LarkGrammar(Grammar):
    """Requires the new text to match a grammar in llguidance's dialect of Lark, which may have token ids."""

    def __init__(
        self, write: Callable[[Mapping[str, int]], str], markers: Sequence[str], source: GrammarTokenizer, what: str
    ) -> None:
        """Compile a grammar.

        Args:
            write: returns the grammar for the ids of those markers that are special tokens.
            markers: texts that may be special tokens.
            source: the tokenizer.
            what: the grammar's name in messages.

        Raises:
            UserError: the grammar is not valid, or exceeds the limits.
        """
        form = source.library.LLMatcher.grammar_from_lark
        super().__init__(what, form(write(source.special_ids(markers))), source, form(write({})))


def schema_text(schema: Mapping[str, Any] | bool, what: str) -> str:
    """Return a schema as JSON.

    Args:
        schema: the schema.
        what: its name in messages.

    Raises:
        UserError: the schema is larger than the limits.
        TypeError, ValueError, RecursionError: it is no JSON.
    """
    given = {"allOf": [schema]} if isinstance(schema, bool) else dict(schema)
    given.pop(ENGINE_OPTIONS, None)
    _check_size(given, what)
    text = json.dumps(given, allow_nan=False)
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{what}: the schema has {len(text):,} characters; at most {MAX_CHARACTERS:,} are possible. Simplify it"
        )
    properties, rest = 0, [json.loads(text)]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                properties += len(inner) if name in PROPERTIES and isinstance(inner, dict) else 0
        rest.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    if properties > MAX_PROPERTIES:
        raise UserError(
            f"{what}: the schema has {properties:,} properties; at most {MAX_PROPERTIES:,} are possible. Simplify it"
        )
    return text


def _check_size(schema: Any, what: str) -> None:
    """Refuse what would become a text of more than MAX_CHARACTERS: a part may occur many times, or within itself."""
    size, rest = 0, [schema]
    while rest:
        value = rest.pop()
        size += len(value) if isinstance(value, (str, Mapping, list, tuple)) else 1
        if size > MAX_CHARACTERS:
            raise UserError(
                f"{what}: the schema has more than {MAX_CHARACTERS:,} characters, which is the limit. Simplify it"
            )
        if isinstance(value, Mapping):
            rest.extend((*value.keys(), *value.values()))
        elif isinstance(value, (list, tuple)):
            rest.extend(value)


def _reason(matcher: Any) -> str:
    """What a matcher refuses, and a remedy."""
    return reason(matcher.get_error() or matcher.stop_reason())


def _library() -> ModuleType:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise UserError(
            f"constrained output needs llguidance, which cannot be imported ({error}). "
            'Install the extra: pip install "edgellama[grammar]"'
        ) from error
