"""Continuous batching without HTTP: the toy of tiny.py, stepped by the test or in the scheduler's own thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import UserError
from edgellama.model import LlamaForCausalLM
from edgellama.serve.scheduler import QueueFullError, Scheduler, SchedulerClosedError
from edgellama.serve.sequence import VisibleText, partial_match
from support.scheduled import Client, finish_all, prompt_of
from support.toy_model import continuation, load

ROWS, CONTEXT = 3, 64


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    return load(tmp_path, batch=ROWS, eos_token_id=())


@settings(max_examples=30, deadline=None)
@given(
    clients=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 49), st.integers(1, 12)), min_size=1, max_size=9),
    pauses=st.lists(st.integers(0, 4), min_size=9, max_size=9),
    chunk=st.sampled_from([1, 4, 16]),
    memory=st.sampled_from([0, 20_000, 1 << 20]),
)
def test_each_answer_equals_the_one_that_it_would_get_alone(
    tmp_path_factory: pytest.TempPathFactory,
    clients: list[tuple[int, int, int]],
    pauses: list[int],
    chunk: int,
    memory: int,
) -> None:
    """Against whole passes over each text; more clients than rows, arriving while others run, some with equal
    beginnings, so that rows are taken over and beginnings reused."""
    model = load(tmp_path_factory.mktemp("toy"), batch=ROWS, eos_token_id=())
    scheduler = Scheduler(model.engine, chunk=chunk, cache_memory=memory)
    made = []
    for (length, first, limit), pause in zip(clients, pauses, strict=False):
        client = Client(model, prompt_of(length, first), limit)
        made.append(client)
        scheduler.submit([client.sequence])
        for _ in range(pause):
            scheduler.step()
            assert scheduler.running <= ROWS
    finish_all(scheduler)
    for client in made:
        assert client.tokens == continuation(client.prompt, client.limit)
        assert client.reason == "length"
        assert client.text == model.tokenizer.decode(client.tokens)


def test_a_decode_pass_serves_all_rows_and_a_row_is_taken_over_at_once(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    clients = [Client(model, prompt_of(3, i), 10) for i in range(5)]
    for client in clients:
        scheduler.submit([client.sequence])
    assert (
        finish_all(scheduler) == 9 + 9
    )  # a step prefills and decodes: ten tokens in nine; the last two clients follow
    assert scheduler.counters.decode_passes == 18 and scheduler.counters.new_tokens == 50


def test_a_long_prompt_delays_the_others_by_two_chunks_at_a_time(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, chunk=4)
    short, long = Client(model, [1, 2], 30), Client(model, prompt_of(40, 3), 2)
    scheduler.submit([short.sequence])
    scheduler.step()
    scheduler.submit([long.sequence])
    for step in range(1, 6):
        before = len(short.events)
        scheduler.step()
        assert len(short.events) == before + 1  # a token in every step
        assert bool(long.events) == (step == 5)
    finish_all(scheduler)
    assert long.tokens == continuation(long.prompt, 2) and short.tokens == continuation([1, 2], 30)


def test_cancelling_frees_the_row_and_leaves_the_others_alone(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    clients = [Client(model, prompt_of(5, i), 12) for i in range(5)]
    for client in clients:
        scheduler.submit([client.sequence])
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (3, 2)
    scheduler.cancel([clients[1].sequence, clients[3].sequence])
    assert scheduler.waiting == 1
    count = len(clients[1].events)
    scheduler.step()
    assert len(clients[1].events) == count and (scheduler.running, scheduler.waiting) == (2, 1)
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (3, 0) and clients[4].events
    finish_all(scheduler)
    assert clients[3].events == []
    for index in (0, 2, 4):
        assert clients[index].tokens == continuation(clients[index].prompt, 12)


def test_a_cached_prefix_is_not_computed_again(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, chunk=4)
    first = Client(model, prompt_of(10, 3), 5)
    scheduler.submit([first.sequence])
    finish_all(scheduler)
    history = [*first.prompt, *first.tokens]
    second = Client(model, [*history, 8, 9], 5)  # a chat that goes on
    other = Client(model, [*first.prompt[:9], 1], 5)  # another one that began alike, at the same time
    scheduler.submit([second.sequence])
    scheduler.submit([other.sequence])
    before = scheduler.counters.prefill_passes
    finish_all(scheduler)
    assert (second.sequence.cached_tokens, other.sequence.cached_tokens) == (12, 8)  # of 14 and 9, in whole chunks
    assert scheduler.counters.prefill_passes - before == 3  # 5 tokens in two chunks, and 2
    assert scheduler.counters.cached_tokens == 20
    fresh = Client(model, [*history, 8, 9], 5, reuse_prefix=False)
    scheduler.submit([fresh.sequence])
    finish_all(scheduler)
    assert fresh.sequence.cached_tokens == 0 and fresh.tokens == second.tokens
    assert second.tokens == continuation([*history, 8, 9], 5)
    assert other.tokens == continuation([*first.prompt[:9], 1], 5)


def test_answers_to_one_prompt_compute_it_once(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, chunk=4)
    clients = [Client(model, prompt_of(14, 3), 5) for _ in range(3)]
    scheduler.submit([client.sequence for client in clients])
    finish_all(scheduler)
    assert [client.sequence.cached_tokens for client in clients] == [0, 12, 12]
    assert all(client.tokens == continuation(client.prompt, 5) for client in clients)


def test_prompts_are_computed_together_where_alone_they_would_have_such_a_pass(tmp_path: Path) -> None:
    """In the same bucket, and each with many tokens: 40 and 50 go with one another, 33 has another bucket."""
    model = load(tmp_path, batch=5, eos_token_id=(), context=128, buckets=(1, 4, 35, 64))
    scheduler = Scheduler(model.engine)
    clients = [Client(model, prompt_of(length, length), 3) for length in (40, 33, 50, 3)]
    scheduler.submit([client.sequence for client in clients])
    finish_all(scheduler)
    assert scheduler.counters.prefill_passes == 3 and scheduler.counters.decode_passes == 2
    assert all(client.tokens == continuation(client.prompt, 3, 128) for client in clients)


def test_the_queue_is_bounded(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine, queue=2)
    clients = [Client(model, [i], 3) for i in range(7)]
    scheduler.submit([client.sequence for client in clients[:4]])
    with pytest.raises(QueueFullError):  # three rows and two places in the queue: all or none
        scheduler.submit([client.sequence for client in clients[4:6]])
    scheduler.submit([clients[4].sequence])
    with pytest.raises(QueueFullError):
        scheduler.submit([clients[5].sequence])
    finish_all(scheduler)
    assert all(len(client.events) == 3 for client in clients[:5]) and not clients[5].events
    scheduler.submit([clients[6].sequence])


def test_eos_stop_strings_and_limits_end_their_own_answer(model: LlamaForCausalLM) -> None:
    free = continuation([5, 6], 20)
    scheduler = Scheduler(model.engine)
    eos = Client(model, [5, 6], 20, eos_token_id=[free[3], free[9]])
    at = next(i for i, token in enumerate(free) if token in (free[3], free[9]))
    text = model.tokenizer.decode(free)
    string = f"w{free[7]}w{free[8]}"
    needed = next(n for n in range(20) if string in model.tokenizer.decode(free[:n]))
    stop = Client(model, [5, 6], 20, stop_strings=[string, "never"])
    length = Client(model, [5, 6], 20)
    scheduler.submit([eos.sequence, stop.sequence, length.sequence])
    finish_all(scheduler)
    assert eos.tokens == free[: at + 1] and eos.reason == "eos"
    assert eos.text == model.tokenizer.decode(free[:at])
    assert stop.reason == "stop_string" and stop.tokens == free[:needed]
    assert stop.text == text[: text.index(string)]
    assert length.reason == "length" and length.text == text


def test_a_row_that_fails_fails_alone(model: LlamaForCausalLM) -> None:
    def refuse(input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if input_ids.shape[1] > 4:
            raise UserError("no further")
        return scores

    scheduler = Scheduler(model.engine)
    failing, other = Client(model, [1, 2], 9, processors=[refuse]), Client(model, [3], 9)
    scheduler.submit([failing.sequence, other.sequence])
    finish_all(scheduler)
    assert len(failing.events) == 4 and str(failing.events[-1].error) == "no further"
    assert other.tokens == continuation([3], 9)


def test_a_pass_that_fails_ends_its_answers_and_the_next_are_served(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(model.engine)
    broken, forward = Client(model, [1, 2], 9), model.engine.forward
    scheduler.submit([broken.sequence])
    scheduler.step()
    monkeypatch.setattr(model.engine, "forward", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
    assert not scheduler.step()
    assert isinstance(broken.events[-1].error, MemoryError)
    monkeypatch.setattr(model.engine, "forward", forward)
    after = Client(model, [1, 2], 9)
    scheduler.submit([after.sequence])
    finish_all(scheduler)
    assert after.tokens == continuation([1, 2], 9)


def test_sampling_depends_on_the_seed_alone(model: LlamaForCausalLM) -> None:
    sampled = {"do_sample": True, "temperature": 2.0}

    def run(*seeds: int) -> list[list[int | None]]:
        scheduler = Scheduler(model.engine)
        clients = [Client(model, [4, 5], 8, seed=(seed,), **sampled) for seed in seeds]
        scheduler.submit([client.sequence for client in clients])
        finish_all(scheduler)
        return [client.tokens for client in clients]

    together = run(1, 2, 1)
    assert together == [*run(1), *run(2), *run(1)] and together[0] != together[1]


def test_logprobs_are_the_models_own(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    client = Client(model, [4, 5], 3, top_logprobs=2, repetition_penalty=5.0)
    scheduler.submit([client.sequence])
    finish_all(scheduler)
    text = [4, 5]
    for event in client.events:
        out = model.generate([text], max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        logits = out.logits[0][0].astype(np.float64)  # type: ignore[union-attr,index]
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        (found,) = event.logprobs
        assert found.token == event.token
        np.testing.assert_allclose(found.logprob, expected[found.token], atol=1e-5)
        order = np.argsort(-expected)[:2]
        assert [i for i, _ in found.top] == order.tolist()
        np.testing.assert_allclose([value for _, value in found.top], expected[order], atol=1e-5)
        text.append(found.token)


def test_the_thread_serves_submitters_of_other_threads(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    scheduler.start()
    clients = [Client(model, prompt_of(4, i), 10) for i in range(12)]
    threads = [threading.Thread(target=scheduler.submit, args=([client.sequence],)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scheduler.close(grace=60)  # lets them end
    assert not scheduler.alive
    for client in clients:
        assert client.tokens == continuation(client.prompt, 10)
    with pytest.raises(SchedulerClosedError):
        scheduler.submit([Client(model, [1], 1).sequence])


def test_closing_without_grace_fails_what_is_left(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    going = threading.Event()

    def slowly(input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        going.set()
        threading.Event().wait(0.01)
        return scores

    clients = [Client(model, [i], 60, processors=[slowly]) for i in range(5)]
    for client in clients:
        scheduler.submit([client.sequence])
    scheduler.start()
    assert going.wait(60)
    scheduler.close()
    assert [type(client.events[-1].error) for client in clients] == [SchedulerClosedError] * 5
    assert all(event.error is None for client in clients for event in client.events[:-1])


def test_a_scheduler_whose_thread_is_gone_refuses(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads do not exist in the child of a fork. A request that is accepted there would wait forever."""
    scheduler = Scheduler(model.engine)
    scheduler.start()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler._thread, "is_alive", lambda: False)
        with pytest.raises(SchedulerClosedError):
            scheduler.reserve(1)
        with pytest.raises(SchedulerClosedError):
            scheduler.submit([])
    scheduler.close()


def test_an_idle_scheduler_leaves_the_engine_to_others(model: LlamaForCausalLM) -> None:
    scheduler = Scheduler(model.engine)
    scheduler.start()
    client = Client(model, [7, 8], 5)
    scheduler.submit([client.sequence])
    scheduler.close(grace=60)
    np.testing.assert_array_equal(model.generate([[7, 8]], max_new_tokens=5)[0, 2:], client.tokens)  # type: ignore[index]


@settings(max_examples=300)
@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_shown_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    class Pieces:
        def push(self, token: int) -> str:
            return pieces[token]

        def flush(self) -> str:
            return ""

    shown = VisibleText(Pieces(), stops)  # type: ignore[arg-type]
    out, whole = "", ""
    for index, piece in enumerate(pieces):
        out += shown.push(index)
        whole += piece
        found = [at for at in (whole.find(stop) for stop in stops) if at >= 0]
        assert shown.stopped == bool(found)
        if found:
            assert out == whole[: min(found)]
            return
        assert whole.startswith(out)
        held = whole[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)  # no more than needed
    assert out + shown.flush() == whole


def test_partial_match() -> None:
    assert [partial_match(text, "aab") for text in ("", "b", "a", "baa", "aaa", "aab")] == [0, 0, 1, 2, 2, 0]
