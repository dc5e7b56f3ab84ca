"""Constrained output: a JSON schema or a regular expression that the new text must match, as a logits processor.

from edgellama.grammar import JsonSchema, Regex
model.generate(input_ids, logits_processor=Regex(r"(yes|no)", model), max_new_tokens=8)

The grammars are llguidance's (the `grammar` extra): of the vocabulary, only tokens that the text may go on with keep
their score, and eos only where the text is whole. A text cut by max_new_tokens (finish_reason "length") is a valid
beginning and no more.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .errors import UserError
from .model import LlamaForCausalLM
from .text.tokenizer import Tokenizer

# Between JSON tokens: a line break and its indentation, or a space. Without a bound a model may write nothing else.
JSON_WHITESPACE = r"\n? {0,16}"


class GrammarTokenizer:
    """The tokenizer as the grammar library needs it. Making one takes a second or so: several grammars share it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: Sequence[int]) -> None:
        """vocab_size: of the logits. eos_token_id: the ids that may end a text.

        Raises UserError where the library is missing, does not know this kind of tokenizer, or nothing ends a text.
        """
        if not eos_token_id:
            raise UserError(
                "constrained output ends with an eos token, and eos_token_id is empty. Give at least one id"
            )
        self.library = _library()
        self.vocab_size = vocab_size
        known = tokenizer.model.get_vocab_size()
        try:
            self.native = self.library.LLTokenizer(
                tokenizer.model.to_str(), n_vocab=max(vocab_size, known), eos_token=list(eos_token_id)
            )
        except ValueError as error:
            raise UserError(f"llguidance cannot use this artifact's tokenizer ({error})") from error

    @classmethod
    def of(cls, model: LlamaForCausalLM, eos_token_id: Sequence[int] | None = None) -> GrammarTokenizer:
        """The model's own. eos_token_id: as given to generate(), where that is not the artifact's."""
        eos = model.generation_config.eos_token_id if eos_token_id is None else eos_token_id
        return cls(model.tokenizer, model.engine.vocab_size, eos)


class Step(NamedTuple):
    """A place in a grammar, and which tokens may come there: boolean [V]."""

    matcher: Any
    allowed: np.ndarray


State = Step | None  # None: the text has left the grammar


class Grammar:
    """A logits processor: input_ids [rows, n], scores [rows, V] -> the scores, -inf for what the grammar rules out.

    A row that is a row of the last call and one more token goes on from there, so rows may be reordered (beam search)
    or left out; any other row is a prompt, after which the grammar begins. A row that went on with a token which was
    ruled out (a beam of probability 0) has left the grammar, and keeps its scores. scores change in place.
    """

    def __init__(self, what: str, grammar: str, source: LlamaForCausalLM | GrammarTokenizer) -> None:
        """what: how errors call it. grammar: in llguidance's own form."""
        self._tokenizer = source if isinstance(source, GrammarTokenizer) else GrammarTokenizer.of(source)
        self._start = self._tokenizer.library.LLMatcher(self._tokenizer.native, grammar, log_level=0)
        self._what = what
        self._states: dict[bytes, State] = {}  # after the last call's rows, by their ids
        if self._start.is_error():
            raise UserError(f"{what}: {self._start.get_error().strip()}")

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
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
        """The state after this text: one token on from a row of the last call, or at the grammar's beginning."""
        before, token = text[:-1].tobytes(), int(text[-1])
        if before not in self._states:
            return self._step(self._start.deep_copy())
        state = self._states[before]
        if state is None or not state.allowed[token]:
            return None
        matcher = state.matcher.deep_copy()
        matcher.consume_token(token)
        return self._step(matcher)

    def _step(self, matcher: Any) -> Step:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0] or matcher.stop_reason()
            raise UserError(f"{self._what}: the grammar cannot be followed further ({reason}). Simplify it")
        allowed = np.zeros(self._tokenizer.vocab_size, bool)
        unpacked = np.unpackbits(bits, count=min(8 * bits.size, allowed.size), bitorder="little")
        allowed[: unpacked.size] = unpacked
        return Step(matcher, allowed)


class JsonSchema(Grammar):
    """The new text is JSON that the schema describes. `True` or {} describe any JSON value."""

    def __init__(
        self,
        schema: Mapping[str, Any] | bool | str,
        source: LlamaForCausalLM | GrammarTokenizer,
        what: str = "JSON schema",
    ) -> None:
        """schema: the schema, or its JSON text. source: the model, or a GrammarTokenizer.

        Raises UserError for what is no schema, contradicts itself, or uses a keyword that cannot be held to.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise UserError(f"{what}: not valid JSON ({error})") from error
        if not isinstance(schema, (Mapping, bool)):
            raise UserError(f"{what}: a JSON {type(schema).__name__}; needed: an object, or true")
        tokenizer = source if isinstance(source, GrammarTokenizer) else GrammarTokenizer.of(source)
        try:
            text = json.dumps({"allOf": [schema]} if isinstance(schema, bool) else dict(schema))
            grammar = tokenizer.library.LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": JSON_WHITESPACE}
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{what}: not a JSON schema ({error})") from error
        super().__init__(what, grammar, tokenizer)


class Regex(Grammar):
    """The new text matches the whole expression, as re.fullmatch has it. The syntax is that of Rust's regex crate: that
    of Python's without look-around, back references and word boundaries."""

    def __init__(
        self, pattern: str, source: LlamaForCausalLM | GrammarTokenizer, what: str = "regular expression"
    ) -> None:
        """source: the model, or a GrammarTokenizer. Raises UserError for an expression outside the syntax."""
        tokenizer = source if isinstance(source, GrammarTokenizer) else GrammarTokenizer.of(source)
        super().__init__(what, tokenizer.library.LLMatcher.grammar_from_regex(pattern), tokenizer)


def _library() -> ModuleType:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise UserError(
            f"constrained output needs llguidance, which cannot be imported ({error}). "
            'Install the extra: pip install "edgellama[grammar]"'
        ) from error
