"""StepBatch, the one pass that decoding, beam search, the scheduler and session files share."""

from __future__ import annotations

import numpy as np
import pytest

from edgellama.engine.engine_lock import Cancelled
from edgellama.errors import LogitsError
from edgellama.generation.decode import GenerationTimings, StepBatch
from edgellama.generation.sampler import NotNumbersError


class Recorder:
    """An engine of three rows that records its calls, and fails when told to."""

    batch = 3

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], list[int], list[int]]] = []
        self.error: Exception | None = None

    def forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        if self.error is not None:
            raise self.error
        valid = [row[:count].tolist() for row, count in zip(tokens, length, strict=True)]
        self.calls.append((valid, start.tolist(), length.tolist()))
        return np.zeros((3, 8), np.float32)


def test_a_pass_feeds_the_rows_that_take_part_only() -> None:
    engine = Recorder()
    step = StepBatch(engine, GenerationTimings())
    step.feed_prompt(0, np.array([5, 6, 7]), 1)
    step.feed_prompt(2, np.array([4]), 0)
    step.run()
    step.feed_token(0, 9, 3)
    step.run()
    step.feed(1, np.array([1, 2]), 7)
    step.run()
    assert engine.calls == [
        ([[6, 7], [], [4]], [1, 0, 0], [2, 0, 1]),
        ([[9], [], []], [3, 0, 1], [1, 0, 0]),
        ([[], [1, 2], []], [4, 7, 1], [0, 2, 0]),
    ]


def test_passes_count_as_prefill_or_decode() -> None:
    timings = GenerationTimings()
    step = StepBatch(Recorder(), timings)
    step.feed_prompt(0, np.array([5, 6, 7]), 1)
    step.run()
    assert (timings.prompt_tokens, timings.cached_tokens, timings.decode_steps) == (3, 1, 0)
    assert timings.prefill > 0 == timings.decode
    prefill = timings.prefill
    for start in (3, 4):
        step.feed_token(0, 9, start)
        step.run()
    assert timings.decode_steps == 2 and timings.decode > 0 and timings.prefill == prefill


@pytest.mark.parametrize("error", [Cancelled(), ValueError("broken")])
def test_a_pass_that_fails_is_measured_and_leaves_the_next_one_alone(error: Exception) -> None:
    engine, timings = Recorder(), GenerationTimings()
    step = StepBatch(engine, timings)
    engine.error = error
    step.feed_token(1, 9, 3)
    with pytest.raises(type(error)):
        step.run()
    assert timings.decode > 0 and timings.decode_steps == 0
    engine.error = None
    step.feed_token(2, 8, 5)
    step.run()
    (tokens, _, length) = engine.calls[0]
    assert tokens == [[], [], [8]] and length == [0, 0, 1]


def test_logits_that_are_not_numbers_name_the_depth() -> None:
    step = StepBatch(Recorder(), GenerationTimings())
    step.feed_token(0, 9, 3)
    step.feed_token(1, 9, 11)

    def fail() -> None:
        raise NotNumbersError

    step.run()
    with pytest.raises(LogitsError, match=r"logits are not numbers after 12 tokens: .* `edgellama check`"):
        step.select(fail)
    with pytest.raises(LogitsError, match="logits are not numbers after 4 tokens"):
        step.select(fail, row=0)
    assert step.select(max, 3, 4) == 4


def test_a_checking_pass_feeds_its_row_only_and_once() -> None:
    engine, timings = Recorder(), GenerationTimings()
    step = StepBatch(engine, timings)
    step.feed_token(2, 9, 4)
    step.run()
    for row, tokens in ((0, [5, 6, 7]), (2, [1, 2])):
        assert step.check(row, np.array(tokens), 3, engine.forward).shape == (3, 8)
    step.feed_token(1, 8, 6)
    step.run()
    assert [call[0] for call in engine.calls] == [[[], [], [9]], [[5, 6, 7], [], []], [[], [], [1, 2]], [[], [8], []]]
    assert [call[1] for call in engine.calls] == [[0, 0, 4], [3, 0, 5], [6, 0, 3], [6, 6, 5]]
    assert (timings.decode_steps, timings.guessed_tokens, timings.accepted_tokens) == (4, 3, 0)
    assert timings.decode > 0 == timings.prefill
