"""The settings of generate(): Hugging Face's names, defaults and limits, checked once when they are made."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .settings import checks
from .settings.checks import Check
from .settings.others import known_settings

SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff", "seed")
MAX_LENGTH_PENALTY = 7.0  # 100,000 tokens to this power still fit float32


@dataclass(init=False)
class GenerationConfig:
    """The settings of a generate() call; keyword arguments only.

    Passed to generate(), it overrides the artifact's settings only where it was given a value (`given`). A setting can
    be assigned; it is checked then, and counts from the next call on.

    Length and end:

    Attributes:
        max_new_tokens: most new tokens; takes precedence over max_length. 20 if neither is given.
        max_length: most tokens, prompt included.
        min_new_tokens: no eos before this many new tokens.
        min_length: no eos before this many tokens, prompt and padding included.
        max_time: end every row after this many seconds; a pass that runs is finished first.
        eos_token_id: any of these ids ends its row.
        pad_token_id: fills rows that have ended; None takes the first eos id.
        stop_strings: a row ends when its new text contains one of them.
        forced_eos_token_id: the last token of a row that reaches its limit is one of these ids.
        exponential_decay_length_penalty: (n, factor): after n new tokens, eos ids gain |score| * (factor ** k - 1) in
            the k-th token that follows.

    Sampling:

    - do_sample: draw each token instead of taking the likeliest.
    - temperature, top_h, top_k (0 turns it off), top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff: shape the
      distribution, in this order.
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
        suppress_tokens, begin_suppress_tokens: ids that must not be generated, or not as the first new token.
        encoder_repetition_penalty, encoder_no_repeat_ngram_size: as in transformers; the prompt is the encoder's input.
        remove_invalid_values: replace NaN by 0, and infinities by the largest finite numbers.
        renormalize_logits: turn the scores into log-probabilities, at the end.

    Output:

    Attributes:
        return_dict_in_generate: return a GenerateOutput.
        output_scores, output_logits, output_logprobs: what it contains besides the sequences.

    Raises UserError for a value out of range, TypeError for an unknown name.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    max_time: float | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    top_h: float | None = None
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
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
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    encoder_repetition_penalty: float = 1.0
    encoder_no_repeat_ngram_size: int = 0
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    stop_strings: tuple[str, ...] = ()
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_logprobs: bool = False

    given: frozenset[str] = field(init=False, repr=False, compare=False)  # names of the values that were given

    def __init__(self, **settings: Any) -> None:
        settings = known_settings("GenerationConfig", settings, FIELDS)
        values = {**DEFAULTS, **settings}
        for name, check in CHECKS.items():
            values[name] = check(name, values[name])
        check = SAMPLED_TEMPERATURE if values["do_sample"] else UNUSED_TEMPERATURE
        values["temperature"] = check("temperature", values["temperature"])
        values["given"] = frozenset(name for name, value in settings.items() if value is not None)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign one setting, which is checked; None means not given."""
        if known_settings("GenerationConfig", {name: value}, FIELDS):
            kept = {given: getattr(self, given) for given in self.given if given != name}
            for changed, its in vars(GenerationConfig(**kept, **{name: value})).items():
                object.__setattr__(self, changed, its)

    @classmethod
    def of(cls, config: Any) -> GenerationConfig:
        """Return settings from this class, from transformers' GenerationConfig, or from a dictionary.

        Raises:
            UserError: it is anything else, a value is out of range, or it has a setting that does not work here; the
                message names what to use.
        """
        if isinstance(config, cls):
            return config
        read = getattr(config, "to_diff_dict", None) or getattr(config, "to_dict", None)
        values = dict(config) if isinstance(config, Mapping) else read() if callable(read) else None
        if values is None:
            found = type(config).__name__
            raise UserError(f"generation_config is a {found}; needed: a GenerationConfig of edgellama or transformers")
        notes = ("_from_model_config", "transformers_version")
        return cls(**{name: value for name, value in values.items() if value is not None and name not in notes})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that were given a value."""
        return {name: getattr(self, name) for name in sorted(self.given)}

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
        given = known_settings(f"{caller}()", given, FIELDS, arguments)
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


DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in dataclasses.fields(GenerationConfig) if f.init}
FIELDS = set(DEFAULTS)

SAMPLED_TEMPERATURE = checks.number("a number above 0 (do_sample=False takes the likeliest)", lambda x: x > 0)
UNUSED_TEMPERATURE = checks.number("a number, at least 0", lambda x: x >= 0)  # 0 is another way to turn sampling off
CHECKS: Mapping[str, Check] = {  # temperature is checked by do_sample
    "max_new_tokens": checks.or_none(checks.whole(1)),
    "max_length": checks.or_none(checks.whole(1)),
    "min_new_tokens": checks.whole(0),
    "min_length": checks.whole(0),
    "max_time": checks.or_none(checks.number("a number above 0", lambda x: x > 0)),
    "eos_token_id": checks.id_list,
    "pad_token_id": checks.or_none(checks.whole(-1)),
    "do_sample": checks.flag,
    "top_k": checks.whole(0),
    "top_p": checks.number("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "min_p": checks.or_none(checks.number("a number from 0 to 1", lambda x: 0 <= x <= 1)),
    "typical_p": checks.number("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "top_h": checks.or_none(checks.number("a number above 0, at most 1", lambda x: 0 < x <= 1)),
    "epsilon_cutoff": checks.number("a number from 0, below 1", lambda x: 0 <= x < 1),
    "eta_cutoff": checks.number("a number from 0, below 1", lambda x: 0 <= x < 1),
    "seed": checks.or_none(checks.whole(0)),
    "num_return_sequences": checks.whole(1),
    "num_beams": checks.whole(1),
    "length_penalty": checks.number(
        f"a number from {-MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}", lambda x: abs(x) <= MAX_LENGTH_PENALTY
    ),
    "early_stopping": checks.early_stopping,
    "prompt_lookup_num_tokens": checks.or_none(checks.whole(1)),
    "max_matching_ngram_size": checks.or_none(checks.whole(1)),
    "sequence_bias": checks.biases,
    "repetition_penalty": checks.number("a number from 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30),
    "no_repeat_ngram_size": checks.whole(0),
    "bad_words_ids": checks.id_sequences,
    "suppress_tokens": checks.id_list,
    "begin_suppress_tokens": checks.id_list,
    "encoder_repetition_penalty": checks.number("a number from 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30),
    "encoder_no_repeat_ngram_size": checks.whole(0),
    "remove_invalid_values": checks.flag,
    "renormalize_logits": checks.flag,
    "stop_strings": checks.strings,
    "forced_eos_token_id": checks.id_list,
    "exponential_decay_length_penalty": checks.or_none(checks.decay),
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_logprobs"),
        checks.flag,
    ),
}
