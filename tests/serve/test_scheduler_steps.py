"""What each step of the scheduler computes: places in the queue, rows, the prompts of a pass, and counters."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.model import LlamaForCausalLM
from edgellama.serve.scheduler import QUEUE, QueueFullError, Scheduler, SchedulerClosedError
from support.scheduled import Client, finish_all, prompt_of
from support.toy_model import continuation, load

ROWS = 3


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    return load(tmp_path, batch=ROWS, eos_token_id=())


@pytest.fixture
def wide(tmp_path: Path) -> LlamaForCausalLM:
    """Buckets whose passes have few and many tokens."""
    return load(tmp_path, batch=4, eos_token_id=(), context=256, buckets=(1, 4, 31, 35, 64))


def passes(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Returns a list to which every pass of the engine adds how many tokens of each row it computes."""
    found: list[list[int]] = []
    forward = model.engine.forward

    def recording(tokens: np.ndarray, start: np.ndarray, length: np.ndarray, *rest: Any) -> np.ndarray:
        found.append(length.tolist())
        return forward(tokens, start, length, *rest)

    monkeypatch.setattr(model.engine, "forward", recording)
    return found


def submit(
    scheduler: Scheduler, model: LlamaForCausalLM, *prompts: list[int], limit: int = 2, **options: Any
) -> list[Client]:
    clients = [Client(model, prompt, limit, **options) for prompt in prompts]
    scheduler.submit([client.sequence for client in clients])
    return clients


def test_the_sizes_follow_from_the_engine(model: LlamaForCausalLM) -> None:
    assert [Scheduler(model.engine, chunk=chunk).chunk for chunk in (4, 16, 17, 128)] == [4, 16, 16, 16]
    assert Scheduler(model.engine, chunk=4).prefill_budget == 8
    assert (Scheduler(model.engine).queue, QUEUE) == (64, 64)


def test_places_are_reserved_and_given_back(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, queue=2)
    with pytest.raises(QueueFullError):
        scheduler.reserve(6)
    scheduler.reserve(3)
    scheduler.reserve(2)
    with pytest.raises(QueueFullError):
        scheduler.reserve(1)
    with pytest.raises(QueueFullError):
        submit(scheduler, model, [1])
    scheduler.release(2)
    clients = [Client(model, [i], 2) for i in range(2)]
    scheduler.submit([client.sequence for client in clients], reserved=3)
    assert (scheduler.waiting, scheduler.running) == (2, 0)
    scheduler.reserve(3)
    with pytest.raises(QueueFullError):
        scheduler.reserve(1)
    scheduler.step()
    assert (scheduler.waiting, scheduler.running) == (0, 0)  # both have ended after two tokens
    scheduler.reserve(2)
    with pytest.raises(QueueFullError):
        scheduler.reserve(1)


def test_reserved_places_are_enough_for_a_full_queue(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, queue=0)
    scheduler.reserve(ROWS)
    clients = [Client(model, [i], 2) for i in range(ROWS)]
    scheduler.submit([client.sequence for client in clients], reserved=ROWS)
    with pytest.raises(QueueFullError):
        submit(scheduler, model, [1])
    finish_all(scheduler)
    assert all(len(client.events) == 2 for client in clients)
    scheduler.reserve(ROWS)


def test_running_sequences_need_no_places_in_the_queue(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, queue=1)
    submit(scheduler, model, [1], [2], limit=9)
    scheduler.step()
    assert scheduler.running == 2
    scheduler.reserve(2)  # the free row, and a place
    with pytest.raises(QueueFullError):
        scheduler.reserve(1)
    scheduler.submit([])


def test_it_is_alive_between_start_and_close(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    assert not scheduler.alive
    scheduler.start()
    assert scheduler.alive
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "engine"] == [
        True
    ]  # never delays an exit
    scheduler.close()
    assert not scheduler.alive
    for call in (lambda: scheduler.submit([]), lambda: scheduler.reserve(1)):
        with pytest.raises(SchedulerClosedError):
            call()
    never = Scheduler(model.engine)
    never.close(grace=60)
    with pytest.raises(SchedulerClosedError):
        never.reserve(0)


def test_a_prompt_is_cut_at_multiples_of_the_chunk(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    found = passes(model, monkeypatch)
    scheduler = Scheduler(model.engine, chunk=4)
    (client,) = submit(scheduler, model, prompt_of(11, 2), limit=3)
    assert scheduler.step() and found == [[4, 0, 0], [4, 0, 0]] and client.events == []
    assert not client.sequence.is_decoding
    assert scheduler.step() and found[2:] == [[3, 0, 0], [1, 0, 0]]
    assert not scheduler.step() and found[4:] == [[1, 0, 0]]
    assert client.tokens == continuation(client.prompt, 3)
    counters = scheduler.counters
    assert (counters.prefill_passes, counters.decode_passes, counters.new_tokens) == (3, 2, 3)
    assert (counters.prompt_tokens, counters.cached_tokens) == (11, 0)


def test_seconds_in_the_model_are_those_of_all_passes(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(model.engine)
    submit(scheduler, model, [1, 2], limit=3)
    began = time.perf_counter()
    finish_all(scheduler)
    timings = scheduler.counters.timings
    assert timings.prefill > 0 < timings.decode
    assert scheduler.counters.engine_seconds == timings.prefill + timings.decode < time.perf_counter() - began


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([40, 50], [[40, 50]]),
        ([32, 35], [[32, 35]]),  # many tokens begin at 32
        ([31, 31], [[31], [31]]),
        ([40, 31], [[40], [31]]),
        ([31, 40, 50], [[31], [40, 50]]),
        ([64, 64], [[64, 64]]),  # the whole budget
        ([64, 64, 40], [[64, 64]]),
        ([50, 60, 40], [[50, 60], [40]]),  # 40 is more than the rest of the budget, and begins a pass of its own
        ([50, 60, 40, 40], [[50, 60], [40]]),
        ([33, 36, 34], [[33, 34], [36]]),  # in buckets of 35 and 64
        ([3, 2], [[3], [2]]),
        ([32, 3, 33], [[32, 33], [3]]),
    ],
)
def test_prompts_that_share_a_pass(
    wide: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, lengths: list[int], expected: list[list[int]]
) -> None:
    found = passes(wide, monkeypatch)
    scheduler = Scheduler(wide.engine, chunk=64)
    clients = submit(scheduler, wide, *[prompt_of(length, length + i) for i, length in enumerate(lengths)], limit=1)
    scheduler.step()
    assert [sorted(count for count in one if count) for one in found] == [sorted(one) for one in expected]
    finish_all(scheduler)
    assert all(client.tokens == continuation(client.prompt, 1, 256) for client in clients)


def test_few_tokens_are_computed_alone_in_any_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tmp_path, batch=3, eos_token_id=(), context=128, buckets=(1, 4, 64))
    scheduler = Scheduler(model.engine, chunk=64)
    found = passes(model, monkeypatch)
    assert scheduler._single_bucket(20) == scheduler._single_bucket(40) == 64
    submit(scheduler, model, prompt_of(20, 1), prompt_of(40, 2), prompt_of(40, 2), limit=1)
    scheduler.step()  # equal prompts within a chunk do not wait: no prefix of theirs could be reused
    assert found == [[20, 0, 0], [0, 40, 40]]


def test_a_size_that_takes_several_passes_is_computed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tmp_path, batch=3, eos_token_id=(), context=256, buckets=(1, 33, 128))
    scheduler = Scheduler(model.engine, chunk=64)
    found = passes(model, monkeypatch)
    assert [scheduler._single_bucket(size) for size in (1, 33, 34, 64, 128)] == [1, 33, None, None, 128]
    submit(scheduler, model, prompt_of(34, 1), prompt_of(34, 2), limit=1)
    scheduler.step()
    assert found == [[34, 0, 0], [0, 34, 0]]


@pytest.mark.parametrize(
    ("length", "options", "waits"),
    [(5, {}, True), (4, {}, False), (9, {}, True), (9, {"reuse_prefix": False}, False)],
)
def test_a_prompt_waits_for_an_equal_first_chunk(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, length: int, options: dict[str, Any], waits: bool
) -> None:
    scheduler = Scheduler(model.engine, chunk=4)
    prompt = prompt_of(length, 3)
    found = passes(model, monkeypatch)
    clients = submit(scheduler, model, prompt, [*prompt[:4], *prompt_of(length - 4, 30)], limit=1, **options)
    finish_all(scheduler)
    assert [client.sequence.cached_tokens for client in clients] == [0, 4 if waits else 0]
    assert sum(map(sum, found)) == 2 * length - (4 if waits else 0)
    other = submit(scheduler, model, prompt_of(9, 17), prompt_of(9, 20), limit=1)
    finish_all(scheduler)
    assert [client.sequence.cached_tokens for client in other] == [0, 0]


def test_a_prompt_takes_the_free_row_that_it_continues(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, chunk=4)
    texts = [prompt_of(12, first) for first in (1, 15, 30)]
    first = submit(scheduler, model, *texts, limit=1)
    finish_all(scheduler)
    rows = [client.sequence.row for client in first]
    assert sorted(rows) == [0, 1, 2]
    # (begins like, common tokens, expected cached tokens, keeps the row): half of a row of 12 is needed to continue it
    for text, common, cached, same in ((2, 7, 4, False), (2, 12, 12, True), (1, 8, 8, True)):
        (client,) = submit(scheduler, model, [*texts[text][:common], *prompt_of(5, 40 + text)], limit=1)
        finish_all(scheduler)
        assert client.sequence.cached_tokens == cached
        assert (client.sequence.row == rows[text]) == same
        assert client.tokens == continuation(client.prompt, 1)


def test_half_of_a_row_is_enough_to_continue_it(model: LlamaForCausalLM) -> None:
    for length, same in ((8, True), (9, False)):
        scheduler = Scheduler(model.engine, chunk=4)
        model.forget()
        (first,) = submit(scheduler, model, prompt_of(length, 1), limit=1)
        finish_all(scheduler)
        (second,) = submit(scheduler, model, [*prompt_of(4, 1), 44], limit=1)
        finish_all(scheduler)
        assert second.sequence.cached_tokens == 4
        assert (second.sequence.row == first.sequence.row) == same


def test_the_row_unused_for_longest_is_taken(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    rows = []
    for number in range(6):
        (client,) = submit(scheduler, model, [number, number + 1], limit=1, reuse_prefix=number % 2 == 0)
        finish_all(scheduler)
        rows.append(client.sequence.row)
    assert rows == [0, 1, 2, 0, 1, 2]


def test_every_pass_is_announced_once(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    scheduler = Scheduler(model.engine, chunk=4, after_pass=lambda: calls.append(len(client.events)))
    (client,) = submit(scheduler, model, prompt_of(6, 1), limit=3)
    finish_all(scheduler)
    assert calls == [0, 1, 2, 3]

    def broken(*_: Any) -> np.ndarray:
        raise MemoryError("no room")

    calls.clear()
    monkeypatch.setattr(model.engine, "forward", broken)
    (client,) = submit(scheduler, model, [1, 2], limit=3)
    passes_before = scheduler.counters.prefill_passes
    assert not scheduler.step()
    assert isinstance(client.events[0].error, MemoryError) and len(client.events) == 1
    assert scheduler.running == 0 and calls and set(calls) == {1}
    assert scheduler.counters.prefill_passes == passes_before + 1


def test_a_cancelled_sequence_leaves_its_place_and_sends_nothing(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, chunk=4)
    clients = submit(scheduler, model, prompt_of(40, 1), [*prompt_of(30, 1), 8], [9, 9], [3], [4], limit=3)
    scheduler.step()  # the second waits for the first one's chunk, and has no row yet
    assert (scheduler.running, scheduler.waiting) == (3, 2)
    scheduler.cancel([clients[i].sequence for i in (0, 1, 3)])
    assert scheduler.waiting == 1
    finish_all(scheduler)
    assert [client.tokens for client in clients[:2]] == [[], []] and clients[3].events == []
    for client in (clients[2], clients[4]):
        assert client.tokens == continuation(client.prompt, 3)
    assert sorted(scheduler._free_rows) == [0, 1, 2]


def test_a_token_that_cannot_be_chosen_fails_its_sequence_only(model: LlamaForCausalLM) -> None:
    def nothing(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return np.full_like(scores, -np.inf)

    scheduler = Scheduler(model.engine)
    (failing,) = submit(scheduler, model, [1, 2], limit=3, processors=[nothing])
    (other,) = submit(scheduler, model, [3], limit=3)
    finish_all(scheduler)
    assert "rule out every token" in str(failing.events[0].error) and len(failing.events) == 1
    assert other.tokens == continuation([3], 3) and scheduler.counters.new_tokens == 3


def test_logits_that_are_not_numbers_name_their_own_rows_depth(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(model.engine, chunk=8)
    monkeypatch.setattr(model.engine, "forward", lambda *_: np.full((ROWS, 50), np.nan, np.float32))
    clients = submit(scheduler, model, [1, 2, 3], [4], limit=3)
    finish_all(scheduler)
    assert [
        "after 3 tokens" in str(clients[0].events[0].error),
        "after 1 tokens" in str(clients[1].events[0].error),
    ] == [
        True,
        True,
    ]
