"""The decode loop over an engine that only adds up tokens: rows, positions, ends, times, and copies of prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgellama.engine.prefix_cache import Placement
from edgellama.errors import LogitsError, UserError
from edgellama.generation.batch import PromptsOnce
from edgellama.generation.config import GenerationConfig
from edgellama.generation.decode import GenerationTimings, StepBatch, decode, greedy
from edgellama.generation.sampler import NotNumbersError
from edgellama.generation.sequences import Sequences
from edgellama.generation.stopping import StopStrings, stops
from edgellama.generation.token_selector import TokenSelector
from support.adding_engine import ROWS, VOCAB, Adder, continued, follower
from support.toy_tokenizers import BYTE_LEVEL

PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]


def run(placement: Placement | None, engine: Adder | None = None, **options: Any) -> tuple[Sequences, list[list[int]]]:
    """Returns the sequences after decoding PROMPTS, and what each step yielded."""
    sequences = Sequences([np.array(prompt) for prompt in PROMPTS], options.pop("limits", [5, 3, 5]))
    engine, timings = engine or Adder(), options.pop("timings", GenerationTimings())
    return sequences, list(decode(engine, sequences, timings, placement=placement, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [None, [0, 1, 2], [1, 2, 3], [2, 0, 3], [3, 2, 1], [0, 1, 3], [0, 2, 3]])
def test_each_row_continues_its_own_prompt_wherever_it_is(rows: list[int] | None) -> None:
    placement = None if rows is None else Placement(np.array(rows), np.zeros(3, np.int64))
    sequences, steps = run(placement)
    wanted = [continued(prompt, count) for prompt, count in zip(PROMPTS, (5, 3, 5), strict=True)]
    assert [sequences.new(row).tolist() for row in range(3)] == wanted
    assert sequences.finish_reasons == ["length"] * 3
    columns = [[tokens[step] if step < len(tokens) else -1 for tokens in wanted] for step in range(5)]
    assert steps == columns


def test_cached_tokens_are_not_fed_again() -> None:
    engine, timings = Adder(), GenerationTimings()
    engine.rows[2], engine.rows[0] = [3, 1], [9, 2, 6]
    sequences, _ = run(Placement(np.array([2, 1, 0]), np.array([2, 0, 3])), engine, timings=timings)
    assert engine.lengths[0] == [1, 2, 1, 0] and engine.lengths[1:] == [[1, 1, 1, 0]] * 2 + [[1, 0, 1, 0]] * 2
    assert sequences.new(0).tolist() == continued(PROMPTS[0], 5)
    assert (timings.prompt_tokens, timings.cached_tokens, timings.decode_steps) == (9, 5, 4)


def test_nothing_is_computed_beyond_the_token_last_taken() -> None:
    engine = Adder()
    sequences = Sequences([np.array([1, 2])], [9])
    steps = decode(engine, sequences, GenerationTimings())  # type: ignore[arg-type]
    assert engine.lengths == []
    for count in (1, 2, 3):
        next(steps)
        assert len(engine.lengths) == count and len(sequences.new(0)) == count
    assert sequences.finish_reasons == [None]


def test_a_stop_ends_its_row_and_the_first_reason_counts() -> None:
    third = continued(PROMPTS[0], 3)[2]

    def when(row: int, steps: int) -> Any:
        return lambda sequences: [index == row and sequences.steps >= steps for index in range(3)]

    engine = Adder()
    sequences, steps = run(None, engine, stops=[("one", when(0, 3)), ("two", when(0, 2)), ("two", when(1, 3))])
    assert sequences.finish_reasons == ["two", "two", "length"]
    assert [len(sequences.new(row)) for row in range(3)] == [2, 3, 5]
    assert steps[2][0] == -1 != third and steps[3][:2] == [-1, -1]
    engine = Adder()
    sequences, steps = run(None, engine, stops=[("all", lambda sequences: [True] * 3)])
    assert (len(steps), len(engine.lengths), sequences.finish_reasons) == (1, 1, ["all"] * 3)


def test_cancelling_ends_the_rows_that_still_run() -> None:
    engine = Adder()
    engine.stop_at = 4
    sequences, steps = run(None, engine)
    assert len(steps) == 4 and sequences.finish_reasons == ["cancelled", "length", "cancelled"]
    engine = Adder()
    engine.stop_at = 0
    sequences, steps = run(None, engine)
    assert steps == [] and sequences.finish_reasons == ["cancelled"] * 3
    replaced: list[int] = []

    def forward(tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        replaced.append(int(length.sum()))
        return Adder().forward(tokens, np.zeros(ROWS, int), length)

    run(None, Adder(), forward=forward, limits=[1, 1, 1])
    assert replaced == [9]


def test_logits_that_are_not_numbers_stop_the_loop() -> None:
    def forward(*_: np.ndarray) -> np.ndarray:
        return np.full((ROWS, VOCAB), np.nan, np.float32)

    with pytest.raises(LogitsError, match="after 4 tokens"):
        run(None, forward=forward)
    with pytest.raises(NotNumbersError):
        greedy(np.full((1, 3), np.nan, np.float32))
    assert greedy(np.array([[0, 2, 2], [5, 1, 2]], np.float32)).tolist() == [1, 0]


def test_times_are_those_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(2.0**power for power in range(20))  # each difference tells which readings it is from
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timings = GenerationTimings()
    step = StepBatch(Adder(), timings)  # type: ignore[arg-type]
    for _ in range(2):
        step.feed(0, np.array([1, 2]), 0)
        step.run()
    for start in (2, 3):
        step.feed_token(0, 1, start)
        step.run()
    assert (timings.prefill, timings.decode, timings.decode_steps) == (1 + 4, 16 + 64, 2)


def test_prompts_of_one_pass_may_have_any_lengths() -> None:
    engine = Adder()
    step = StepBatch(engine, GenerationTimings())  # type: ignore[arg-type]
    step.feed(1, np.array([7]), 0)
    step.feed(3, np.array([5, 6, 7, 8]), 0)
    step.feed(0, np.array([4, 4]), 0)
    assert step.run().shape == (ROWS, VOCAB)
    assert engine.rows == [[4, 4], [7], [], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("worth", "computed"), [(1, [3, 2, 0, 0]), (2, [3, 2, 0, 0]), (3, [3, 2, 0, 2]), (4, [3, 2, 3, 2])]
)
def test_equal_prompts_are_computed_once_if_a_copy_is_worth_it(worth: int, computed: list[int]) -> None:
    engine = Adder(worth)
    prompts = [np.array(prompt) for prompt in ([3, 1, 4], [1, 5], [3, 1, 4], [1, 5])]
    once = PromptsOnce(engine, prompts, np.arange(ROWS), lambda: False)  # type: ignore[arg-type]
    tokens, length = np.zeros((ROWS, 3), int), np.array([3, 2, 3, 2])
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    logits = once(tokens, np.zeros(ROWS, int), length)
    assert engine.lengths == [computed] and length.tolist() == [3, 2, 3, 2]
    assert logits.argmax(axis=1).tolist() == [follower(prompt.tolist()) for prompt in prompts]
    assert [row[: len(p)] for row, p in zip(engine.rows, prompts, strict=True)] == [p.tolist() for p in prompts]
    sources = {1: [0, 1, 0, 1], 2: [0, 1, 0, 1], 3: [0, 1, 0, 3]}
    assert engine.copies == ([(sources[worth], 3)] if worth < 4 else [])
    once(np.ones((ROWS, 1), int), length, np.ones(ROWS, int))
    assert engine.lengths[1] == [1] * ROWS and len(engine.copies) <= 1  # later passes compute every row


def test_a_copy_goes_to_the_row_of_its_prompt() -> None:
    engine = Adder()
    prompts = [np.array([3, 1, 4])] * 2
    once = PromptsOnce(engine, prompts, np.array([3, 1]), lambda: False)  # type: ignore[arg-type]
    once(np.array([[0] * 3, [3, 1, 4], [0] * 3, [3, 1, 4]]), np.zeros(ROWS, int), np.array([0, 3, 0, 3]))
    assert engine.lengths == [[0, 0, 0, 3]] and engine.copies == [([0, 3, 2, 3], 3)]


def selector(rows: int = 2, custom: Any = (), **settings: Any) -> TokenSelector:
    generators = [np.random.default_rng(row) for row in range(rows)]
    return TokenSelector(GenerationConfig(**settings), 4, generators, custom)


def two_rows(limit: int = 9) -> Sequences:
    return Sequences([np.array([1]), np.array([2, 3])], [limit, limit])


LOGITS = np.array([[0, 3, 1, 2], [4, 0, 1, 3]], np.float32)


def test_outputs_are_kept_for_live_rows_only() -> None:
    for settings in ({}, {"repetition_penalty": 2.0}):
        pick = selector(output_scores=True, output_logits=True, output_logprobs=True, **settings)
        sequences = two_rows()
        first = pick(sequences, LOGITS)
        assert first == ([1, 0] if not settings else [3, 0])
        sequences.push(first)
        sequences.finish([True, False], "eos")
        second = pick(sequences, LOGITS[::-1].copy())
        assert second[0] == -1
        logprob = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(pick.logprobs[0], [logprob[0, first[0]], logprob[1, 0]], rtol=1e-6)
        np.testing.assert_allclose(pick.logprobs[1], [0, logprob[0, second[1]]], rtol=1e-6)
        np.testing.assert_array_equal(pick.logits, [LOGITS, LOGITS[::-1]])
        assert not pick.scores[1][0].any()
        # a positive score is halved once its token has occurred
        halved = {1: 2.0} if settings else {}
        assert pick.scores[0][0].tolist() == [s / halved.get(i, 1) for i, s in enumerate(LOGITS[0].tolist())]
    plain = selector()
    plain(two_rows(), LOGITS)
    assert not (plain.scores or plain.logits or plain.logprobs)


def test_eos_is_held_back_for_exactly_min_new_tokens() -> None:
    pick, sequences = selector(eos_token_id=[1, 0], min_new_tokens=2), two_rows()
    found = []
    for _ in range(3):
        found.append(pick(sequences, LOGITS))
        sequences.push(found[-1])
    assert found == [[3, 3], [3, 3], [1, 0]]
    assert selector(min_new_tokens=2)(two_rows(), LOGITS) == [1, 0]  # without eos there is nothing to hold back


def test_a_row_draws_from_its_own_generator() -> None:
    flat = np.zeros((2, 4), np.float32)
    pick, sequences = selector(do_sample=True), two_rows(99)
    drawn = []
    for step in range(40):
        drawn.append(pick(sequences, flat))
        sequences.push(drawn[-1])
        if step == 9:
            sequences.finish([True, False], "eos")
    for row, count in ((0, 10), (1, 40)):
        uniform = np.random.default_rng(row).random(count)
        assert [step[row] for step in drawn[:count]] == (uniform * 4).astype(int).tolist()


@pytest.mark.parametrize(
    ("settings", "kept"), [({}, 1), ({"num_beams": 2}, 2), ({"num_beams": 3, "eos_token_id": [1, 2]}, 3)]
)
def test_the_sampler_keeps_enough_tokens_for_every_beam(settings: dict[str, Any], kept: int) -> None:
    pick = selector(do_sample=True, top_k=1, **settings)
    scores, logprobs = pick.log_probabilities(two_rows(), LOGITS)
    assert np.isfinite(scores).sum(axis=1).tolist() == [kept, kept]
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=1), 1, rtol=1e-6)
    assert not pick.scores and not pick.logits
    pick = selector(output_scores=True, output_logits=True, repetition_penalty=2.0)
    scores, logprobs = pick.log_probabilities(two_rows(), LOGITS)
    np.testing.assert_array_equal(pick.scores, [scores])
    np.testing.assert_array_equal(pick.logits, [LOGITS])
    doubled = np.array([[1, 2, 1, 1], [1, 1, 2, 2]])  # a negative score is doubled
    np.testing.assert_allclose(scores, logprobs * doubled, rtol=1e-6)


def test_own_processors_get_whole_rows_and_run_last() -> None:
    seen: list[Any] = []

    def first(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append((ids.tolist(), scores.tolist()))
        return scores * 2

    def second(ids: np.ndarray, scores: np.ndarray) -> list[list[float]]:
        seen.append(scores.tolist())
        return (-scores).tolist()

    pick, sequences = selector(custom=[first, second], pad_token_id=7), two_rows()
    sequences.push([3, 3])
    sequences.finish([True, False], "eos")
    assert pick(sequences, LOGITS) == [-1, 1]
    scores = [[0.0] * 4, LOGITS[1].tolist()]
    assert seen == [([[7, 1, 3], [2, 3, 3]], scores), [[2 * x for x in row] for row in scores]]
    assert selector(custom=[first, first])(two_rows(), LOGITS) == [1, 0]
    assert seen[2][0] == [[0, 1], [2, 3]]  # without a padding id
    with pytest.raises(UserError, match=r"returned shape \(2,\); needed: \(2, 4\)"):
        selector(custom=[lambda ids, scores: [1, 2]])(two_rows(), LOGITS)


def pushed(*tokens: int) -> Iterator[Sequences]:
    """Yields the sequences of two rows after each token; the second row gets 0."""
    sequences = two_rows()
    for token in tokens:
        sequences.push([token, 0])
        yield sequences


def test_any_eos_ends_its_row() -> None:
    ((reason, stop),) = stops(GenerationConfig(eos_token_id=[5, 8]), lambda: BYTE_LEVEL, 2)
    assert reason == "eos"
    assert [list(stop(sequences)) for sequences in pushed(4, 5, 6, 8)] == [
        [x, False] for x in (False, True, False, True)
    ]
    assert stops(GenerationConfig(), lambda: 1 / 0, 2) == []  # type: ignore[arg-type,return-value]


def test_a_stop_string_may_begin_in_earlier_tokens() -> None:
    ids = {char: BYTE_LEVEL.encode(char, add_special_tokens=False)[0] for char in "abcde"}
    stop = StopStrings(["bcd", "e"], BYTE_LEVEL, 2)
    found = [stop(sequences)[0] for sequences in pushed(*(ids[char] for char in "abcabcd"))]
    assert found == [False] * 6 + [True]
    stop = StopStrings(["e"], BYTE_LEVEL, 2)
    assert [stop(sequences)[0] for sequences in pushed(*(ids[char] for char in "dea"))] == [False, True, False]
    special = BYTE_LEVEL.model.token_to_id("</s>")
    stop = StopStrings(["d</s>"], BYTE_LEVEL, 2)
    assert [stop(sequences)[0] for sequences in pushed(ids["d"], special)] == [False, True]
    stop = StopStrings(["a"], BYTE_LEVEL, 2)
    sequences = two_rows()
    sequences.push([ids["a"], ids["a"]])
    sequences.finish([False, True], "eos")
    assert stop(sequences) == [True, False]  # a row that ended stays as it is


@pytest.mark.parametrize("scores", [False, True])
def test_a_criterion_gets_padded_ids_and_the_scores(scores: bool) -> None:
    seen: list[Any] = []
    kept = [np.ones((2, 4), np.float32)]

    def criterion(ids: np.ndarray, given: Any) -> Any:
        seen.append((ids.tolist(), given))
        return True if len(seen) == 1 else [False, True]

    config = GenerationConfig(output_scores=scores, pad_token_id=9)
    ((reason, stop),) = stops(config, lambda: BYTE_LEVEL, 2, kept, [criterion])
    assert reason == "stopping_criteria"
    assert [stop(sequences) for sequences in pushed(4, 4)] == [[True, True], [False, True]]
    assert [ids for ids, _ in seen] == [[[9, 1, 4], [2, 3, 0]], [[9, 1, 4, 4], [2, 3, 0, 0]]]
    assert all((given == tuple(kept)) if scores else (given is None) for _, given in seen)
    ((_, stop),) = stops(GenerationConfig(), lambda: BYTE_LEVEL, 2, (), [lambda ids, _: ids[0, 0] == 0])
    assert stop(two_rows()) == [True, True]  # without a padding id rows are padded with 0
    ((_, stop),) = stops(config, lambda: BYTE_LEVEL, 2, (), [lambda *_: [True]])
    with pytest.raises(UserError, match=r"shape \(1,\); needed: one boolean, or 2"):
        stop(two_rows())
