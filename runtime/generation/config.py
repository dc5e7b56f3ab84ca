"""The settings of generate(): Hugging Face's names, defaults and limits, checked once."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from ..artifact.manifest import Artifact
from ..errors import UserError

SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
# What generation_config.json says of other things, or the manifest says as well.
NOT_SETTINGS = {
    *("_from_model_config", "transformers_version", "bos_token_id", "use_cache"),
    *("cache_implementation", "return_dict_in_generate", "output_scores", "output_logits"),
}
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, "", [], {})
MAX_LENGTH_PENALTY = 7.0  # 100,000 tokens to its power still fit float32


@dataclass(frozen=True)
class GenerationConfig:
    """What generate() uses where the call does not say. Raises UserError for a value out of range.

    Passed to generate(), it says what it was made with; for the rest the artifact's own stands.

    max_new_tokens goes before max_length (prompt included); without either, 20 new tokens. min_new_tokens: no eos
    before. eos_token_id: any of these ends its row. pad_token_id fills ended rows; None falls back to the first eos id.

    do_sample: draw each token, instead of taking the likeliest; then temperature, top_k (0: off), top_p, min_p and
    typical_p shape the distribution, in this order. seed: the same seed, prompt and settings give the same tokens, each
    row on its own; the numbers are numpy's, so not those that torch draws. num_return_sequences: answers a prompt.

    num_beams: above 1, beam search: the texts of highest total log-probability divided by length ** length_penalty, of
    which the best num_return_sequences are returned; do_sample draws their continuations. early_stopping:
    True ends it when num_beams texts have ended, False when a better one is unlikely, "never" when none can come.

    Also when not sampling: sequence_bias ({(id, ...): added to the last id's score where the others precede it}),
    repetition_penalty, no_repeat_ngram_size, bad_words_ids (sequences that must not come), stop_strings (a row ends
    where its new text holds one).

    return_dict_in_generate: a GenerateOutput, with scores (output_scores), logits (output_logits) and the model's
    log-probabilities of the new tokens (output_logprobs) where asked for.
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
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    stop_strings: tuple[str, ...] = ()
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_logprobs: bool = False

    said: ClassVar[frozenset[str]] = frozenset()  # the names of what it was made with

    def __new__(cls, *given: Any, **named: Any) -> GenerationConfig:
        self = super().__new__(cls)
        self._set(said=frozenset([*named, *(field.name for field in dataclasses.fields(cls)[: len(given)])]))
        return self

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length"):
            if getattr(self, name) is not None:
                self._whole(name, 1)
        self._whole("num_return_sequences", 1)
        self._whole("num_beams", 1)
        least, most = -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY
        self._number("length_penalty", f"a number from {least:g} to {most:g}", lambda x: least <= x <= most)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UserError(f'early_stopping is {self.early_stopping!r}; needed: True, False or "never"')
        for name in ("min_new_tokens", "top_k", "no_repeat_ngram_size"):
            self._whole(name, 0)
        if self.seed is not None:
            self._whole("seed", 0)
        for name in ("do_sample", "return_dict_in_generate", "output_scores", "output_logits", "output_logprobs"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise UserError(f"{name} is {getattr(self, name)!r}; needed: True or False")
        above = bool(self.do_sample)  # without sampling it has no effect, and 0 says what is meant
        needed = "a number above 0 (do_sample=False takes the likeliest)" if above else "a number, at least 0"
        self._number("temperature", needed, lambda x: x > 0 if above else x >= 0)
        self._number("top_p", "a number above 0, at most 1", lambda x: 0 < x <= 1)
        self._number("typical_p", "a number above 0, at most 1", lambda x: 0 < x <= 1)
        self._number("repetition_penalty", "a number from 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30)
        if self.min_p is not None:
            self._number("min_p", "a number from 0 to 1", lambda x: 0 <= x <= 1)
        self._set(
            eos_token_id=_eos(self.eos_token_id),
            bad_words_ids=_sequences("bad_words_ids", self.bad_words_ids),
            sequence_bias=_biases(self.sequence_bias),
            stop_strings=_strings(self.stop_strings),
        )
        if self.pad_token_id is not None:
            self._whole("pad_token_id", -1)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise UserError(f"{name} is {value!r}; needed: a whole number, at least {least}")
        self._set(**{name: int(value)})

    def _number(self, name: str, needed: str, fits: Any) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not fits(value):
            raise UserError(f"{name} is {value!r}; needed: {needed}")
        self._set(**{name: float(value)})

    @classmethod
    def of(cls, artifact: Artifact) -> GenerationConfig:
        """The artifact's defaults: its generation_config.json, and the manifest's special ids where that has none."""
        path = artifact.file("generation_config.json")
        stored: Any = {}
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path}: not valid JSON ({error}). Restore it or export again") from error
        if not isinstance(stored, dict):
            raise UserError(f"{path}: a JSON {type(stored).__name__}; needed: an object. Restore it or export again")
        known, others = {}, []
        for name, value in stored.items():
            if name in FIELDS and name not in NOT_SETTINGS:
                if value is not None:
                    known[name] = value
            elif name not in NOT_SETTINGS and value not in NEUTRAL:
                others.append(name)
        if others:
            warnings.warn(f"{path}: {', '.join(others)}: not known to this runtime, so without effect", stacklevel=2)
        ids = {name: getattr(artifact.manifest, name) for name in ("eos_token_id", "pad_token_id")}
        try:
            return cls(**{**ids, **known})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def updated(self, given: Mapping[str, Any], arguments: Sequence[str], caller: str) -> GenerationConfig:
        """With a call's settings in place; None means not given, an empty eos list that nothing ends a row.

        arguments: what `caller` takes beside settings. Raises TypeError for a name that is no setting, naming the
        nearest that is one or the other.
        """
        for name in given:
            if name not in FIELDS:
                nearest = difflib.get_close_matches(name, [*arguments, *sorted(FIELDS)], n=1, cutoff=0.0)[0]
                raise TypeError(f"{caller}() has no keyword {name!r}; the nearest is {nearest!r}")
        changes = {name: value for name, value in given.items() if value is not None}
        if "max_new_tokens" in changes and "max_length" in changes:
            warnings.warn("both max_new_tokens and max_length given: max_new_tokens counts", stacklevel=4)
        elif "max_length" in changes:
            changes["max_new_tokens"] = None
        config = dataclasses.replace(self, **changes)
        idle = [name for name in SAMPLING_ONLY if name in changes and name != "seed"]
        if idle and not config.do_sample:
            warnings.warn(f"{', '.join(idle)}: without effect, since do_sample is False", stacklevel=4)
        if config.num_beams > 1:
            config.check_beams()
        elif config.num_return_sequences > 1 and not config.do_sample:
            raise UserError(
                f"num_return_sequences is {config.num_return_sequences} and do_sample False: they would be equal. "
                "Use do_sample=True, or num_beams"
            )
        if config.do_sample and any(bias == math.inf for _, bias in config.sequence_bias):
            raise UserError("sequence_bias holds inf, and a draw needs finite scores. Use a large number, such as 1e4")
        return config

    def completed(self, other: GenerationConfig) -> GenerationConfig:
        """`other`, with what this one was made with in place; None means not given."""
        said = {name: getattr(self, name) for name in self.said if getattr(self, name) is not None}
        if "max_length" in said:
            said.setdefault("max_new_tokens", None)
        return dataclasses.replace(other, **said)

    def check_beams(self) -> None:
        """Raises UserError for settings that beam search does not take."""
        if self.num_return_sequences > self.num_beams:
            raise UserError(
                f"num_return_sequences is {self.num_return_sequences} and num_beams {self.num_beams}. "
                "Raise num_beams to as many"
            )

    @property
    def padding(self) -> int | None:
        """What ended rows are filled with; None only where no row can end before the others."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.eos_token_id[0] if self.eos_token_id else None


FIELDS = {field.name for field in dataclasses.fields(GenerationConfig)}


def _eos(given: Any) -> tuple[int, ...]:
    ids = np.atleast_1d(np.asarray(given, np.int64 if np.size(given) == 0 else None))
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"eos_token_id is {given!r}; needed: a token id or a list of them")
    return tuple(int(i) for i in ids)


def _sequences(name: str, given: Any) -> tuple[tuple[int, ...], ...]:
    """[[id, ...], ...] as tuples."""
    try:
        rows = [list(row) for row in given]
    except TypeError:
        rows = [[]]
    if not all(rows) or any(isinstance(i, bool) or not isinstance(i, Integral) or i < 0 for row in rows for i in row):
        raise UserError(f"{name} is {given!r}; needed: a list of lists of token ids, none of them empty")
    return tuple(tuple(int(i) for i in row) for row in rows)


def _biases(given: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, ...): bias} or [[[id, ...], bias], ...]."""
    pairs: Iterable[Any] = given.items() if isinstance(given, Mapping) else given
    try:
        ids, values = zip(*pairs, strict=True) if given else ((), ())
        numbers = [float(value) for value in values]
        if any(math.isnan(number) for number in numbers):
            raise ValueError("not a number")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sequence_bias is {given!r}; needed: {{(id, ...): bias}} or a list of [[id, ...], bias]"
        ) from error
    return tuple(zip(_sequences("sequence_bias", ids), numbers, strict=True))


def _strings(given: str | Sequence[str]) -> tuple[str, ...]:
    strings = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(string, str) and string for string in strings):
        raise UserError(f"stop_strings is {given!r}; needed: a string or a list of them, none empty")
    return strings
