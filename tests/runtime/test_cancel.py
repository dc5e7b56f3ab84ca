"""Cancelling from another thread, before the start, in a long prompt, and by Ctrl-C; the model stays usable."""

from __future__ import annotations

import _thread
import contextlib
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.conversation.chat import Chat
from edgellama.errors import UserError
from edgellama.generation.decode import GenerationTimings
from edgellama.generation.output import GenerateOutput, Piece
from edgellama.generation.stream import Stream
from edgellama.model import LlamaForCausalLM
from support.serving import wait_until
from support.toy_model import continuation, load


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    return load(tmp_path, batch=2, eos_token_id=())


def usable(model: LlamaForCausalLM) -> bool:
    return model.generate([5, 6], max_new_tokens=4)[0, 2:].tolist() == continuation([5, 6], 4)


def test_a_cancelled_stream_ends_with_reason_and_timings(model: LlamaForCausalLM) -> None:
    stream = model.stream([5, 6], max_new_tokens=9)
    pieces = [next(stream), next(stream)]
    stream.cancel()
    pieces += list(stream)
    assert [piece.id for piece in pieces] == [*continuation([5, 6], 2), None]
    last = pieces[-1]
    assert (last.finish_reason, last.logprob) == ("cancelled", None)
    assert "".join(piece.text for piece in pieces) == "".join(f"w{i}" for i in continuation([5, 6], 2))
    assert last.timings is not None and (last.timings.prompt_tokens, last.timings.decode_steps) == (2, 1)
    assert usable(model)


def test_a_stream_may_be_cancelled_before_it_starts_and_after_it_ended(model: LlamaForCausalLM) -> None:
    stream = model.stream([5, 6], max_new_tokens=3)
    stream.cancel()
    (piece,) = stream
    assert (piece.id, piece.finish_reason) == (None, "cancelled")
    stream = model.stream([5, 6], max_new_tokens=3)
    *_, last = stream
    stream.cancel()
    model.cancel()  # nothing runs
    assert last.finish_reason == "length" and list(stream) == []
    assert usable(model)


def test_a_stream_that_waits_its_turn_ends_at_once_and_the_next_moves_up(model: LlamaForCausalLM) -> None:
    running = model.stream([5, 6], max_new_tokens=4)
    pieces, ends = [next(running)], []
    waiting = [model.stream([7, 8 + i], max_new_tokens=3) for i in range(4)]
    got: list[list[Piece]] = [[] for _ in waiting]

    def read(index: int) -> None:
        got[index].extend(waiting[index])
        ends.append(index)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for count, thread in enumerate(threads, 1):
        thread.start()
        wait_until(lambda count=count: model.engine.engine_lock.waiting == count)  # type: ignore[misc]
    for index in (2, 0):
        waiting[index].cancel()
        threads[index].join(30)
        (piece,) = got[index]
        assert (piece.id, piece.text, piece.logprob, piece.finish_reason) == (None, "", None, "cancelled")
        assert piece.timings == GenerationTimings()
    assert model.engine.engine_lock.waiting == 2 and ends == [2, 0]
    pieces += list(running)  # which nothing disturbed
    assert [piece.id for piece in pieces] == continuation([5, 6], 4)
    for index in (1, 3):
        threads[index].join(30)
        assert [piece.id for piece in got[index]] == continuation([7, 8 + index], 3)
    assert ends == [2, 0, 1, 3] and model.engine.engine_lock.waiting == 0
    assert usable(model)


def test_a_long_prompt_is_left_between_its_chunks(model: LlamaForCausalLM) -> None:
    prompt = list(range(3, 49))
    run, chunks = model.engine._run, []

    def running(*arguments: Any) -> np.ndarray:
        chunks.append(arguments[0])
        stream.cancel()
        return run(*arguments)

    model.engine._run = running  # type: ignore[method-assign]
    stream = model.stream(prompt, max_new_tokens=3)
    (piece,) = stream
    del model.engine._run
    assert chunks == [16] and piece.finish_reason == "cancelled"
    assert piece.timings is not None and piece.timings.prefill > 0
    # the computed part is reused
    out = model.generate(prompt, max_new_tokens=3, return_dict_in_generate=True, reuse_prefix=True)
    assert out.timings.cached_tokens == 16
    assert out.sequences[0, 46:].tolist() == continuation(prompt, 3)


class CancelAt:
    """A streamer that calls model.cancel() from another thread at the n-th step."""

    def __init__(self, model: LlamaForCausalLM, step: int) -> None:
        self.model, self.step, self.puts, self.ends = model, step, -1, 0

    def put(self, value: np.ndarray) -> None:
        self.puts += 1
        if self.puts == self.step:
            thread = threading.Thread(target=self.model.cancel)
            thread.start()
            thread.join()

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize("step", [0, 3])
def test_generate_returns_what_it_has(model: LlamaForCausalLM, step: int) -> None:
    streamer = CancelAt(model, step)
    out = model.generate(
        [5, 6],
        max_new_tokens=9,
        streamer=streamer,
        return_dict_in_generate=True,
        output_scores=True,
        output_logprobs=True,
    )
    assert isinstance(out, GenerateOutput) and out.scores is not None and out.logprobs is not None
    assert out.sequences.tolist() == [[5, 6, *continuation([5, 6], step)]]
    assert out.finish_reasons == ("cancelled",)
    assert len(out.scores) == step and out.logprobs.shape == (1, step)
    assert streamer.ends == 1
    assert usable(model)


def test_batches_after_the_cancelled_one_do_not_run(model: LlamaForCausalLM) -> None:
    prompts = [[5, 6], [7, 8], [9, 10]]

    def criterion(ids: np.ndarray, scores: Any) -> bool:
        if ids.shape[1] == 4:
            model.cancel()
        return False

    out = model.generate(
        prompts,
        max_new_tokens=5,
        pad_token_id=0,
        stopping_criteria=criterion,
        return_dict_in_generate=True,
        output_scores=True,
        output_logprobs=True,
    )
    assert out.finish_reasons == ("cancelled",) * 3
    assert out.sequences[:, 2:].tolist() == [continuation(prompts[0], 2), continuation(prompts[1], 2), [0, 0]]
    assert out.logprobs.shape == (3, 2) and not out.logprobs[2].any() and out.scores[0].shape == (3, 50)
    assert usable(model)


def test_a_cancelled_beam_search_returns_its_best_so_far(model: LlamaForCausalLM) -> None:
    settings: dict[str, Any] = {"num_beams": 2, "return_dict_in_generate": True}
    steps = []

    def processor(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        steps.append(ids.shape[1])
        if len(steps) == 3:
            model.cancel()
        return scores

    out = model.generate([5, 6], max_new_tokens=8, logits_processor=processor, **settings)
    assert out.finish_reasons == ("cancelled",)
    assert out.sequences.tolist() == model.generate([5, 6], max_new_tokens=3, **settings).sequences.tolist()
    assert usable(model)


@pytest.mark.parametrize("streaming", [False, True])
def test_ctrl_c_is_a_keyboard_interrupt_that_leaves_the_model_usable(model: LlamaForCausalLM, streaming: bool) -> None:
    prompt = list(range(3, 49))
    run, calls = model.engine._run, []

    def running(*arguments: Any) -> np.ndarray:
        calls.append(1)
        logits = run(*arguments)
        if len(calls) == 2:
            _thread.interrupt_main()  # like the signal handler; Python raises it when it runs the next code
            time.sleep(1)
        return logits

    model.engine._run = running  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        if streaming:
            list(model.stream(prompt, max_new_tokens=3))
        else:
            model.generate(prompt, max_new_tokens=3)
    del model.engine._run
    assert model.engine.prefixes.row(0).tolist() == prompt[:16]  # the second chunk was not completed
    assert model.generate(prompt, max_new_tokens=3)[0, 46:].tolist() == continuation(prompt, 3)


def test_a_pools_thread_waits_for_the_stream_that_it_began_and_another_ends(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Web frameworks do this: any free thread requests the next piece."""
    stream = model.stream([5, 6], max_new_tokens=4)
    pieces, got, begun = [], [], threading.Event()

    def request() -> None:
        pieces.append(next(stream))
        begun.set()
        got.append(model.generate([9], max_new_tokens=3)[0, 1:].tolist())

    thread = threading.Thread(target=request)
    thread.start()
    assert begun.wait(30)
    pieces += list(stream)
    thread.join()
    assert [piece.id for piece in pieces] == continuation([5, 6], 4) and got == [continuation([9], 3)]

    monkeypatch.setattr("edgellama.engine.engine_lock.PATIENCE", 0.05)
    stream = model.stream([5, 6], max_new_tokens=4)
    errors = []

    def careless() -> None:
        next(stream)
        try:
            model.generate([9])
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=careless)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "another stream() of this thread" in errors[0]
    stream.close()
    assert usable(model)


def test_transformers_iterator_streamer_serves_another_thread(model: LlamaForCausalLM) -> None:
    from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model.tokenizer.model)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    thread = threading.Thread(target=model.generate, args=([5, 6],), kwargs={"max_new_tokens": 5, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.replace(" ", "") == "".join(f"w{i}" for i in continuation([5, 6], 5))


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Only reference counts free objects in the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def by_break(streams: Callable[[], Stream]) -> None:
    for _ in streams():
        break


def by_exception(streams: Callable[[], Stream]) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in streams():
            raise ZeroDivisionError


def by_del(streams: Callable[[], Stream]) -> None:
    stream = streams()
    next(stream)
    del stream


def by_close(streams: Callable[[], Stream]) -> None:
    stream = streams()
    next(stream)
    stream.close()
    assert list(stream) == []


def by_with(streams: Callable[[], Stream]) -> None:
    with pytest.raises(ZeroDivisionError), streams() as stream:
        next(stream)
        raise ZeroDivisionError


def by_listener(streams: Callable[[], Stream]) -> None:
    def listener(piece: Piece) -> None:
        raise ZeroDivisionError

    stream = streams()
    stream.listeners.append(listener)
    with pytest.raises(ZeroDivisionError):
        next(stream)


def by_generator(streams: Callable[[], Stream]) -> None:
    texts = (piece.text for piece in streams())
    next(texts)
    del texts


@pytest.mark.parametrize(
    "abandon", [by_break, by_exception, by_del, by_close, by_with, by_listener, by_generator], ids=lambda f: f.__name__
)
def test_an_abandoned_stream_releases_the_model_at_once(tmp_path: Path, abandon: Callable[..., None]) -> None:
    model = load(tmp_path, batch=2, eos_token_id=())
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    kinds: list[Callable[[], Stream]] = [
        lambda: model.stream([5, 6], max_new_tokens=9),
        lambda: model.stream([5, 6], max_new_tokens=9, stop_strings=["w99"], repetition_penalty=1.5),
        lambda: model.stream_chat("w5", max_new_tokens=9),
        lambda: model.session().stream([5, 6], max_new_tokens=9),
        lambda: Chat(model).ask("w5", max_new_tokens=9),
    ]
    with no_collection():
        for streams in kinds:
            abandon(streams)
            assert model.engine.engine_lock._queue == deque()
            assert usable(model)
