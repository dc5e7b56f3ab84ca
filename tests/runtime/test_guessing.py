"""Speculative decoding over an engine that only adds up tokens: the tokens, the passes, the ends and the counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgellama.errors import LogitsError, UserError
from edgellama.generation.batch import Batch, GenerateCall
from edgellama.generation.config import GenerationConfig
from edgellama.generation.decode import GenerationTimings, greedy
from edgellama.generation.sequences import Sequences
from edgellama.generation.speculative import Pace, PromptLookup, decode_guessing
from support.adding_engine import ROWS, VOCAB, Adder, continued, follower

PROMPT = [3, 1, 4, 1, 5]
TEXT = continued(PROMPT, 40)


class Oracle:
    """Guesses the right tokens, but a wrong one at each of these places after the prompt."""

    def __init__(self, wrong: Sequence[int] = ()) -> None:
        self.wrong = wrong
        self.asked: list[tuple[int, int]] = []  # new tokens so far, most

    def guess(self, ids: np.ndarray, most: int) -> np.ndarray:
        begin = len(ids) - len(PROMPT)
        assert ids.tolist() == PROMPT + TEXT[:begin]
        self.asked.append((begin, most))
        return np.array([TEXT[i] if i not in self.wrong else TEXT[i] ^ 1 for i in range(begin, begin + most)])


class Steady(Pace):
    """Always guesses the same number of tokens, and keeps what it was told."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count
        self.steps: list[float] = []
        self.checks: list[tuple[int, int, float]] = []

    def length(self) -> int:
        return self.count

    def stepped(self, seconds: float) -> None:
        self.steps.append(seconds)

    def checked(self, guessed: int, accepted: int, seconds: float) -> None:
        self.checks.append((guessed, accepted, seconds))


class Run:
    """One run of decode_guessing: what it yielded, and everything that it called."""

    def __init__(self, guesser: Any, pace: Any, limit: int = 20, row: int = 0, cached: int = 0, **options: Any) -> None:
        self.engine: Any = options.pop("engine", None) or Adder()
        self.engine.rows[row] = PROMPT[:cached]
        self.timings = GenerationTimings()
        self.sequences = Sequences([np.array(PROMPT)], [limit])
        select = options.pop("select", lambda sequences, logits: greedy(logits).tolist())
        stops, cancelled = options.pop("stops", ()), options.pop("cancelled", lambda: False)
        self.steps = decode_guessing(
            *(self.engine, self.sequences, self.timings, select, stops, (row, cached), self.engine.forward),
            *(cancelled, guesser, pace),
        )
        self.row = row

    def tokens(self) -> list[int]:
        picked = [token for (token,) in self.steps]
        assert picked == self.sequences.new(0).tolist()
        return picked

    def passes(self) -> list[int]:
        """The tokens that each pass fed to the row; no pass feeds another row."""
        assert all(sum(lengths) == lengths[self.row] for lengths in self.engine.lengths)
        return [lengths[self.row] for lengths in self.engine.lengths]


@pytest.mark.parametrize("row", range(ROWS))
@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("wrong", [(), range(40), range(0, 40, 2), range(0, 40, 5), (3, 4, 11)], ids=str)
def test_the_tokens_are_those_of_plain_decoding(row: int, count: int, wrong: Sequence[int]) -> None:
    run = Run(Oracle(wrong), Steady(count), row=row)
    assert run.tokens() == TEXT[:20]
    assert run.sequences.finish_reasons == ["length"]
    assert run.timings.decode_steps == len(run.passes()) - 1 == 19 - run.timings.accepted_tokens
    assert run.timings.guessed_tokens == sum(run.passes()[1:]) - run.timings.decode_steps


def test_right_guesses_save_passes() -> None:
    run = Run(Oracle(), pace := Steady(4))
    run.tokens()
    assert run.passes() == [5, 5, 5, 5, 4]  # 1 + 5 + 5 + 5 + 4 tokens; the last pass guesses what the limit allows
    assert [(guessed, accepted) for guessed, accepted, _ in pace.checks] == [(4, 4)] * 3 + [(3, 3)]
    assert (run.timings.guessed_tokens, run.timings.accepted_tokens) == (15, 15)


def test_after_a_wrong_guess_the_text_goes_on_behind_the_last_right_one() -> None:
    run = Run(oracle := Oracle([3]), pace := Steady(4))
    run.tokens()
    assert oracle.asked == [(1, 4), (4, 4), (9, 4), (14, 4), (19, 0)][: len(oracle.asked)] and len(oracle.asked) == 4
    assert [(guessed, accepted) for guessed, accepted, _ in pace.checks] == [(4, 2), (4, 4), (4, 4), (4, 4)]
    assert run.passes() == [5, 5, 5, 5, 5, 1]  # one token is left: nothing is worth a guess


def test_cached_tokens_of_the_prompt_are_not_fed_again() -> None:
    run = Run(Oracle(), Steady(4), row=2, cached=3)
    assert run.tokens() == TEXT[:20] and run.passes()[0] == 2
    assert (run.timings.prompt_tokens, run.timings.cached_tokens) == (5, 3)


@pytest.mark.parametrize(("limit", "passes"), [(1, [5]), (2, [5, 1]), (3, [5, 2]), (6, [5, 5]), (7, [5, 5, 1])])
def test_the_limit_of_new_tokens_is_exact(limit: int, passes: list[int]) -> None:
    run = Run(Oracle(), Steady(4), limit)
    assert run.tokens() == TEXT[:limit] and run.passes() == passes
    assert run.sequences.finish_reasons == ["length"]


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("wrong", [(), (5,)], ids=str)
def test_the_first_stop_ends_the_sequence_at_its_token(count: int, wrong: Sequence[int]) -> None:
    stops = [
        ("late", lambda sequences: [sequences.steps >= count + 1]),
        ("first", lambda sequences: [sequences.steps >= count]),
        ("second", lambda sequences: [sequences.steps >= count]),
    ]
    run = Run(Oracle(wrong), Steady(4), stops=stops)
    assert run.tokens() == TEXT[:count] and run.sequences.finish_reasons == ["first"]
    assert run.timings.accepted_tokens + run.timings.decode_steps == count - 1


def test_without_guesses_each_pass_feeds_one_token() -> None:
    class Nothing:
        def guess(self, ids: np.ndarray, most: int) -> np.ndarray:
            return ids[:0]

    for guesser, count in ((Nothing(), 4), (Oracle(), 0)):
        run = Run(guesser, pace := Steady(count), 5)
        assert run.tokens() == TEXT[:5] and run.passes() == [5, 1, 1, 1, 1]
        assert len(pace.steps) == 4 and pace.checks == []
        assert (run.timings.guessed_tokens, run.timings.accepted_tokens) == (0, 0)


def test_nothing_is_computed_beyond_the_token_last_taken() -> None:
    run = Run(Oracle(), Steady(2))
    assert run.engine.lengths == []
    for passes in (1, 2, 2, 2, 3, 3, 3, 4):
        next(run.steps)
        assert len(run.engine.lengths) == passes
    assert run.sequences.finish_reasons == [None]


def test_cancelling_ends_the_sequence_between_passes() -> None:
    for stop_at, count in ((0, 0), (1, 1), (2, 6), (3, 11)):
        engine = Adder()
        engine.stop_at = stop_at
        run = Run(Oracle(), Steady(4), engine=engine)
        assert run.tokens() == TEXT[:count] and run.sequences.finish_reasons == ["cancelled"]
    answers = iter([False, True])
    run = Run(Oracle(), Steady(4), cancelled=lambda: next(answers))
    assert run.tokens() == TEXT[:6] and run.sequences.finish_reasons == ["cancelled"]


def test_logits_that_are_not_numbers_stop_the_loop() -> None:
    for count, words in ((4, "after 10 tokens"), (0, "after 8 tokens")):
        engine = Adder()
        engine.scores = lambda text: np.eye(VOCAB, dtype=np.float32)[follower(text)] * (np.nan if len(text) == 8 else 1)
        run = Run(Oracle(), Steady(count), engine=engine)
        taken = []
        with pytest.raises(LogitsError, match=words):
            taken.extend(run.steps)
        assert [token for (token,) in taken] == TEXT[:3]


def test_times_are_those_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Adder):
        def hidden(self, tokens: np.ndarray, *arguments: Any, **more: Any) -> np.ndarray:
            clock[0] += {5: 100.0, 1: 1.0, 3: 10.0}[tokens.shape[1]]
            return super().hidden(tokens, *arguments, **more)

    class Thinking(Oracle):
        def guess(self, ids: np.ndarray, most: int) -> np.ndarray:
            clock[0] += 0.5
            return super().guess(ids, most)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pace = Steady(2)
    counts = iter([2, 0, 2])
    monkeypatch.setattr(pace, "length", lambda: next(counts))
    run = Run(Thinking([2]), pace, 8, engine=Slow())
    for _ in range(7):
        next(run.steps)
        clock[0] += 1000.0  # the caller's own time
    assert pace.steps == [1.0] and pace.checks == [(2, 1, 10.5), (2, 2, 10.5)]  # with the time of the guesses
    assert (run.timings.prefill, run.timings.decode) == (100.0, 21.0)


def scores(text: Sequence[int]) -> np.ndarray:
    """Logits that depend on the whole text, with several likely tokens."""
    seed = sum((place + 1) * token for place, token in enumerate(text))
    return np.random.default_rng(seed).normal(0, 2, VOCAB).astype(np.float32)


def batch(engine: Adder, prompts: list[list[int]], adapters: Sequence[int] = (), **settings: Any) -> Batch:
    config = GenerationConfig(**settings)
    call = GenerateCall(config, [], [], 5, True, adapters=adapters)
    rows = [np.array(prompt) for prompt in prompts]
    return Batch(engine, lambda: 1 / 0, call, rows, 0, [12] * len(rows))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True}, {"do_sample": True, "top_k": 3, "repetition_penalty": 1.3}], ids=str
)
@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_batch_gives_the_same_tokens_with_guesses(
    count: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "length", lambda self: self._next)
    found = []
    for guesses in (None, count):
        engine, timings = Adder(), GenerationTimings()
        engine.scores = scores
        settings |= {"prompt_lookup_num_tokens": guesses, "max_matching_ngram_size": 1, "output_logprobs": True}
        one = batch(engine, [[1, 2, 3, 1, 2]], **settings)
        picked = list(one.decode(timings))
        assert picked == [[token] for token in one.sequences.new(0).tolist()] and len(picked) == 12
        assert engine.places == [([[1, 2, 3, 1, 2]], True, [0])]
        assert (timings.guessed_tokens > 0) == (guesses is not None)
        found.append((picked, np.array(one.selector.logprobs).tolist()))
    assert found[0] == found[1]


def test_a_batch_looks_for_as_many_tokens_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Recorder(PromptLookup):
        def __init__(self, longest: int) -> None:
            asked.append(longest)
            super().__init__(longest)

    monkeypatch.setattr("edgellama.generation.batch.PromptLookup", Recorder)
    for longest in (None, 1, 7):
        one = batch(Adder(), [PROMPT], prompt_lookup_num_tokens=2, max_matching_ngram_size=longest)
        assert [token for (token,) in one.decode(GenerationTimings())] == TEXT[:12]
    assert asked == [4, 1, 7]


def test_a_batch_guesses_for_one_row_only() -> None:
    with pytest.raises(UserError, match="one sequence at a time, and this call has 2"):
        batch(Adder(), [PROMPT, PROMPT], prompt_lookup_num_tokens=2)

    class Headless(Adder):
        @property
        def head(self) -> Any:
            raise UserError("no head")

        @head.setter
        def head(self, value: Any) -> None:
            pass

    with pytest.raises(UserError, match="no head"):
        batch(Headless(), [PROMPT], prompt_lookup_num_tokens=2)
    batch(Headless(), [PROMPT])


def test_each_row_of_a_batch_has_its_prompts_adapter() -> None:
    assert batch(Adder(), [PROMPT] * 2).adapters == [0, 0]
    assert batch(Adder(), [PROMPT] * 3, [4, 5, 6]).adapters == [4, 5, 6]
    twice = batch(Adder(), [PROMPT] * 4, [4, 5], num_return_sequences=2, do_sample=True)
    assert twice.adapters == [4, 4, 5, 5]
    list(twice.decode(GenerationTimings()))
    assert twice.engine.places == [([PROMPT] * 4, True, [4, 4, 5, 5])]  # type: ignore[attr-defined]
    assert twice.engine.lengths[0] == [5, 0, 5, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ids", "longest", "most", "want"),
    [
        ([1, 2, 3, 4, 1, 2], 4, 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 4, 7, [3, 4, 1, 2, 3, 4, 1]),
        ([1, 2, 9, 1, 2, 8, 5, 1, 2], 2, 2, [8, 5]),  # the latest place counts
        ([7, 1, 2, 9, 9, 1, 2, 8, 7, 1, 2], 3, 1, [9]),  # a longer match counts more
        ([1, 1, 1, 1], 4, 3, [1, 1, 1]),
        ([1, 2, 3], 4, 5, []),
        ([5], 4, 5, []),
        ([5, 6, 5], 4, 5, []),  # one equal token is no match
        ([5, 6, 5], 1, 5, [6, 5, 6, 5, 6]),  # with `longest` 1, one equal token is a match
    ],
)
def test_prompt_lookup(ids: list[int], longest: int, most: int, want: list[int]) -> None:
    assert PromptLookup(longest).guess(np.array(ids), most).tolist() == want


def test_wrong_guesses_cost_at_most_three_percent() -> None:
    """Simulated times: a step takes 1, each further token of a pass 0.1 to 0.9."""
    for extra in (0.1, 0.3, 0.9):
        pace, spent, tokens = Pace(7), 0.0, 0
        while tokens < 120:
            length = pace.length()
            took = 1 + extra * length
            if length:
                pace.checked(length, 0, took)
            else:
                pace.stepped(took)
            spent, tokens = spent + took, tokens + 1
        assert spent <= tokens * 1.03


def test_right_guesses_go_on() -> None:
    pace = Pace(50)  # more than a pass may check
    assert pace.length() == 0  # nothing is known before the first step
    pace.stepped(1.0)
    for want in (4, 7, 7):
        assert pace.length() == want
        pace.checked(want, want, 1.5)
    pace.checked(7, 2, 1.5)
    assert pace.length() == 3
    pace.checked(3, 3, 1.5)
    assert pace.length() == 6
    pace.checked(6, 0, 1.5)
    assert pace.length() == 1
    assert [Pace(most)._next for most in (1, 3, 4, 5, 9)] == [1, 3, 4, 4, 4]


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_prompt_lookup_finds_the_latest_of_the_longest_matches(longest: int) -> None:
    """Against a search in texts of three letters."""

    def search(text: str, most: int) -> str:
        for size in range(longest, min(2, longest) - 1, -1):
            begin = text.rfind(text[-size:], 0, len(text) - 1) if len(text) > size else -1
            if begin >= 0:
                follow = text[begin + size :][:most]
                return (follow * most)[:most]
        return ""

    rng = np.random.default_rng(longest)
    for _ in range(300):
        ids = rng.integers(0, 3, rng.integers(1, 12))
        most = int(rng.integers(1, 9))
        found = PromptLookup(longest).guess(ids, most)
        assert "".join(map(str, found.tolist())) == search("".join(map(str, ids.tolist())), most), ids


@pytest.mark.parametrize(("steps", "limit"), [([1.0], 1.9239), ([1.0, 2.0], 2.4315), ([2.0], 3.8477)])
def test_a_guess_is_worth_it_up_to_a_measured_loss(steps: list[float], limit: float) -> None:
    """The loss of a wrong pass of `t` s: t - step <= step + 0.015 * (steps + t) - 0.12 * step for the next guess."""
    for took, length in ((limit - 0.001, 1), (limit + 0.001, 0)):
        pace = Pace(4)
        for step in steps:
            pace.stepped(step)
        pace.checked(4, 0, took)
        assert pace.length() == length
        pace.stepped(steps[-1])  # decoding on earns another guess
        assert pace.length() == 1


def test_a_measured_pass_replaces_the_assumed_cost() -> None:
    pace = Pace(2)
    pace.stepped(1.0)
    assert pace.length() == 2  # 0.24 assumed
    pace.checked(2, 2, 3.0)  # no gain, no loss
    assert pace.length() == 0  # 2 measured, 1.06 allowed
    pace = Pace(2)
    pace.stepped(1.0)
    for seconds in (1.0, 3.0):  # 2 gained, then nothing; the mean of both passes is 1.5
        pace.checked(2, 2, seconds)
    assert pace._passes == {3: 1.5} and pace._balance == 2.0 and pace._spent == 5.0
    pace.checked(2, 1, 2.0)
    assert pace._balance == 2.0 and pace._next == 2
