"""Stop strings that name special tokens, which the answer does not show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgellama.generation.config import GenerationConfig
from edgellama.serve.sequence import SequenceEvent, ServedSequence
from support.toy_tokenizers import BYTE_LEVEL

A, B, C = (BYTE_LEVEL.encode(letter, add_special_tokens=False)[0] for letter in "abc")
BOS, EOS, START = (BYTE_LEVEL.model.token_to_id(text) for text in ("<s>", "</s>", "<|start|>"))


def answer(ids: Sequence[int], stops: Sequence[str], eos: int | None = None) -> tuple[str, str | None, int]:
    """(text, finish reason, tokens) of a sequence whose model wants the tokens `ids`."""
    events: list[SequenceEvent] = []
    config = GenerationConfig(eos_token_id=() if eos is None else (eos,), stop_strings=tuple(stops))
    size = BYTE_LEVEL.model.get_vocab_size()
    sequence = ServedSequence([BOS], len(ids), config, BYTE_LEVEL, size, events.append)
    for token in ids:
        if not sequence.finished:
            sequence.select_token(np.where(np.arange(size) == token, np.float32(9), np.float32(0)))
    return "".join(event.text for event in events), events[-1].finish_reason, len(events)


@pytest.mark.parametrize(
    ("ids", "stops", "expected"),
    [
        ([A, START, B], ["<|start|>"], ("a", "stop_string", 2)),
        ([START, B], ["<|start|>"], ("", "stop_string", 1)),
        ([A, START, B], ["zz", "<|start|>"], ("a", "stop_string", 2)),
        ([A, START, B, C], ["a<|start|>b"], ("", "stop_string", 3)),
        ([A, START, B, C], ["<|start|>c"], ("abc", "length", 4)),  # not in this order
        ([A, START, START, B], ["<|start|><|start|>"], ("a", "stop_string", 3)),
        ([A, START, EOS, B], ["<|start|></s>"], ("a", "stop_string", 3)),
        ([A, START], ["<|start|></s>"], ("a", "length", 2)),  # what was held back is shown, without the mark
        ([A, BOS, START, B], ["<|start|>"], ("a", "stop_string", 3)),  # other special tokens do not matter
        ([*BYTE_LEVEL.encode("ab</s>c", add_special_tokens=False)], ["</s>"], ("ab", "stop_string", 3)),
    ],
)
def test_an_answer_ends_before_special_tokens_of_a_stop_string(
    ids: Sequence[int], stops: Sequence[str], expected: tuple[str, str, int]
) -> None:
    assert answer(ids, stops) == expected


def test_the_name_of_a_special_token_as_plain_text_is_a_stop_string_too() -> None:
    letters = [BYTE_LEVEL.encode(letter, add_special_tokens=False)[0] for letter in "<|start|>"]
    assert answer([A, *letters, B], ["<|start|>"]) == ("a", "stop_string", 1 + len(letters))


def test_eos_ends_first() -> None:
    assert answer([A, EOS], ["</s>"], eos=EOS) == ("a", "eos", 2)


def test_bytes_of_an_unfinished_character_before_the_special_token_are_no_text_behind_it() -> None:
    half = BYTE_LEVEL.model.token_to_id("Ã")
    text, reason, _ = answer([A, half, START, B], ["<|start|>"])
    assert (text.rstrip("\ufffd"), reason) == ("a", "stop_string")


def test_many_special_tokens_in_one_stop_string_take_no_longer() -> None:
    stop = "".join(["<s>", "</s>", "<|start|>"] * 20_000)
    assert answer([A, START, B], [stop]) == ("ab", "length", 3)
