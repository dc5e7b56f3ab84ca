"""The settings of generate(): Hugging Face's names, defaults and limits, checked once when they are made."""

from __future__ import annotations

import dataclasses
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..errors import UserError, shown

SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
MAX_LENGTH_PENALTY = 7.0  # 100,000 tokens to this power still fit float32


@dataclass(frozen=True, init=False)
class GenerationConfig:
    """The settings of a generate() call; keyword arguments only.

    Passed to generate(), it overrides the artifact's settings only where it was given a value (`given`).

    Length and end:

    Attributes:
        max_new_tokens: most new tokens; takes precedence over max_length. 20 if neither is given.
        max_length: most tokens, prompt included.
        min_new_tokens: no eos before this many new tokens.
        eos_token_id: any of these ids ends its row.
        pad_token_id: fills rows that have ended; None takes the first eos id.
        stop_strings: a row ends when its new text contains one of them.

    Sampling:

    - do_sample: draw each token instead of taking the likeliest.
    - temperature, top_k (0 turns it off), top_p, min_p, typical_p: shape the distribution, in this order.
    - seed: the same seed, prompt and settings give the same tokens, for each row by itself. The random numbers are
      numpy's, so they differ from torch's.
    - num_return_sequences: answers per prompt.

    Beam search:

    Attributes:
        num_beams: above 1, search for the sequences of highest total log-probability divided by
            length ** length_penalty, and return the best num_return_sequences; with do_sample continuations are drawn.
        length_penalty: see num_beams.
        early_stopping: True ends the search when num_beams sequences have ended, False when a better one is unlikely,
            "never" when none can come.

    Speed, with the same tokens (target cpu, one sequence without beams; see `generation/speculative.py`):

    Attributes:
        prompt_lookup_num_tokens: guess up to this many tokens per pass from what followed the last tokens earlier in
            the text, and check them in one pass. None guesses nothing. More than 7 count as 7.
        max_matching_ngram_size: how many of the last tokens are looked up, at most; None means 4.

    Scores, with and without sampling:

    Attributes:
        sequence_bias: {(id, ...): bias}; the bias is added to the last id's score after the other ids.
        repetition_penalty, no_repeat_ngram_size: as in transformers.
        bad_words_ids: sequences of ids that must not be generated.

    Output:

    Attributes:
        return_dict_in_generate: return a GenerateOutput.
        output_scores, output_logits, output_logprobs: what it contains besides the sequences.

    Raises UserError for a value out of range, TypeError for an unknown name.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    seed: int | None = None
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    stop_strings: tuple[str, ...] = ()
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_logprobs: bool = False

    given: frozenset[str] = field(init=False, repr=False, compare=False)  # names of the values that were given

    def __init__(self, **settings: Any) -> None:
        _check_names("GenerationConfig", settings)
        values = {**DEFAULTS, **settings}
        for name, check in CHECKS.items():
            values[name] = check(name, values[name])
        check = SAMPLED_TEMPERATURE if values["do_sample"] else UNUSED_TEMPERATURE
        values["temperature"] = check("temperature", values["temperature"])
        values["given"] = frozenset(name for name, value in settings.items() if value is not None)
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def updated(self, given: Mapping[str, Any], arguments: Sequence[str], caller: str) -> GenerationConfig:
        """Return these settings with those of a call in place.

        Args:
            given: the call's settings. None means not given; an empty eos_token_id means that no id ends a row.
            arguments: the caller's other arguments, which an error may suggest.
            caller: name of the function, for messages.

        Raises:
            UserError: a value is out of range, or settings exclude each other.
            TypeError: an unknown name; the message gives the nearest setting or argument.
        """
        _check_names(f"{caller}()", given, arguments)
        changes = {name: value for name, value in given.items() if value is not None}
        if "max_new_tokens" in changes and "max_length" in changes:
            warnings.warn("both max_new_tokens and max_length given: max_new_tokens counts", stacklevel=4)
        elif "max_length" in changes:
            changes["max_new_tokens"] = None
        config = dataclasses.replace(self, **changes)
        unused = [name for name in SAMPLING_ONLY if name in changes and name != "seed"]
        if unused and not config.do_sample:
            warnings.warn(f"{', '.join(unused)}: without effect, since do_sample is False", stacklevel=4)
        config.check_returned_sequences()
        if config.do_sample and any(bias == math.inf for _, bias in config.sequence_bias):
            raise UserError("sequence_bias holds inf, and a draw needs finite scores. Use a large number, such as 1e4")
        return config

    def completed(self, other: GenerationConfig) -> GenerationConfig:
        """Return `other` with the values that this one was given in place."""
        changes = {name: getattr(self, name) for name in self.given}
        if "max_length" in changes:
            changes.setdefault("max_new_tokens", None)
        return dataclasses.replace(other, **changes)

    def check_returned_sequences(self) -> None:
        """Raise UserError if num_return_sequences does not suit num_beams or do_sample."""
        several = self.num_return_sequences
        if self.num_beams > 1 and several > self.num_beams:
            raise UserError(
                f"num_return_sequences is {several} and num_beams {self.num_beams}. Raise num_beams to as many"
            )
        if self.num_beams == 1 and several > 1 and not self.do_sample:
            raise UserError(
                f"num_return_sequences is {several} and do_sample False: they would be equal. "
                "Use do_sample=True, or num_beams"
            )

    @property
    def padding(self) -> int | None:
        """The id that fills rows that have ended; None if there is no pad_token_id and no eos id."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.eos_token_id[0] if self.eos_token_id else None


LARGEST = (1 << 63) - 1  # of a whole number: native code takes int64
DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in dataclasses.fields(GenerationConfig) if f.init}
FIELDS = set(DEFAULTS)

Check = Callable[[str, Any], Any]  # name, value -> the value in its normal form; raises UserError


def _check_names(caller: str, given: Iterable[str], arguments: Sequence[str] = ()) -> None:
    for name in given:
        if name not in FIELDS:
            nearest = difflib.get_close_matches(name, [*arguments, *sorted(FIELDS)], n=1, cutoff=0.0)[0]
            raise TypeError(f"{caller} has no keyword {name!r}; the nearest is {nearest!r}")


def _whole(least: int) -> Check:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= LARGEST:
            raise UserError(f"{name} is {shown(value)}; needed: a whole number, at least {least}")
        return int(value)

    return check


def _number(needed: str, fits: Callable[[float], bool]) -> Check:
    def check(name: str, value: Any) -> float:
        number = math.nan
        if isinstance(value, Real) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer that no float can hold
                number = float(value)
        if not math.isfinite(number) or not fits(number):
            raise UserError(f"{name} is {shown(value)}; needed: {needed}")
        return number

    return check


def _or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise UserError(f"{name} is {shown(value)}; needed: True or False")
    return bool(value)


def _early_stopping(name: str, value: Any) -> bool | str:
    if not isinstance(value, bool) and value != "never":
        raise UserError(f'{name} is {shown(value)}; needed: True, False or "never"')
    return value


def _ids(name: str, value: Any) -> tuple[int, ...]:
    """One id, or a list of them."""
    try:
        ids = np.atleast_1d(np.asarray(value, np.int64 if np.size(value) == 0 else None))
    except ValueError:  # lists of different lengths
        ids = np.empty((0, 0))
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.size and ids.max() > LARGEST):
        raise UserError(f"{name} is {shown(value)}; needed: a token id or a list of them")
    return tuple(int(i) for i in ids)


def _id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """[[id, ...], ...] as tuples."""
    try:
        rows = [list(row) for row in value]
    except TypeError:
        rows = [[]]
    ids = [i for row in rows for i in row]
    whole = all(isinstance(i, Integral) and not isinstance(i, bool) and 0 <= int(i) <= LARGEST for i in ids)
    if not all(rows) or not whole:
        raise UserError(f"{name} is {shown(value)}; needed: a list of lists of token ids, none of them empty")
    return tuple(tuple(int(i) for i in row) for row in rows)


def _biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, ...): bias}, or [[[id, ...], bias], ...]."""
    pairs: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    try:
        ids, values = zip(*pairs, strict=True) if value else ((), ())
        numbers = [float(number) for number in values]
        if any(math.isnan(number) for number in numbers):
            raise ValueError("not a number")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} is {shown(value)}; needed: {{(id, ...): bias}} or a list of [[id, ...], bias]"
        ) from error
    return tuple(zip(_id_sequences(name, ids), numbers, strict=True))


def _strings(name: str, value: Any) -> tuple[str, ...]:
    """One string, or a list of them."""
    strings = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(string, str) and string for string in strings):
        raise UserError(f"{name} is {shown(value)}; needed: a string or a list of them, none empty")
    return strings


SAMPLED_TEMPERATURE = _number("a number above 0 (do_sample=False takes the likeliest)", lambda x: x > 0)
UNUSED_TEMPERATURE = _number("a number, at least 0", lambda x: x >= 0)  # without sampling, 0 is another way to say so
CHECKS: Mapping[str, Check] = {  # temperature is checked by do_sample
    "max_new_tokens": _or_none(_whole(1)),
    "max_length": _or_none(_whole(1)),
    "min_new_tokens": _whole(0),
    "eos_token_id": _ids,
    "pad_token_id": _or_none(_whole(-1)),
    "do_sample": _flag,
    "top_k": _whole(0),
    "top_p": _number("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "min_p": _or_none(_number("a number from 0 to 1", lambda x: 0 <= x <= 1)),
    "typical_p": _number("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "seed": _or_none(_whole(0)),
    "num_return_sequences": _whole(1),
    "num_beams": _whole(1),
    "length_penalty": _number(
        f"a number from {-MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}", lambda x: abs(x) <= MAX_LENGTH_PENALTY
    ),
    "early_stopping": _early_stopping,
    "prompt_lookup_num_tokens": _or_none(_whole(1)),
    "max_matching_ngram_size": _or_none(_whole(1)),
    "sequence_bias": _biases,
    "repetition_penalty": _number("a number from 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30),
    "no_repeat_ngram_size": _whole(0),
    "bad_words_ids": _id_sequences,
    "stop_strings": _strings,
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_logprobs"),
        _flag,
    ),
}
