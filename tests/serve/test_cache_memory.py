"""`--cache-memory`: conversations whose row was taken over go on without computing their history again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgellama.artifact.manifest import Artifact
from edgellama.backend.resources import Limit
from edgellama.engine import memory
from edgellama.errors import UserError
from edgellama.generation.config import GenerationConfig
from edgellama.model import LlamaForCausalLM
from edgellama.serve import command
from edgellama.serve.scheduler import Scheduler
from edgellama.serve.sequence import SequenceEvent, ServedSequence
from support.checkpoints import export_all
from support.exported import scratch, tiny_checkpoint
from support.scheduled import Client, finish_all, prompt_of
from support.toy_model import continuation, load

MEGABYTES = 1_000_000


class Talk(NamedTuple):
    """What some conversations cost.

    Attributes:
        answers: of every conversation and turn.
        prompt_tokens: of all turns.
        computed_tokens: those of them that were computed.
        stored: bytes of the store at the end.
    """

    answers: list[list[list[int | None]]]
    prompt_tokens: int
    computed_tokens: int
    stored: int


def talk(
    model: LlamaForCausalLM,
    system: list[int],
    questions: Sequence[Sequence[list[int]]],
    answer: int,
    **options: Any,
) -> Talk:
    """Runs conversations turn by turn: every conversation's turn is asked before the next turn of any.

    Args:
        model: answers greedily.
        system: the tokens that every conversation begins with.
        questions: the tokens of each conversation's turns.
        answer: tokens of each answer.
        options: of Scheduler; reuse=False computes every prompt as a whole.
    """
    reuse = options.pop("reuse", True)
    scheduler = Scheduler(model.engine, queue=len(questions), **options)
    histories = [list(system) for _ in questions]
    answers: list[list[list[int | None]]] = [[] for _ in questions]
    for turn in range(len(questions[0])):
        asked = []
        for history, turns in zip(histories, questions, strict=True):
            history += turns[turn]
            events: list[SequenceEvent] = []
            config = GenerationConfig(eos_token_id=())
            sequence = ServedSequence(
                history, answer, config, model.tokenizer, model.engine.vocab_size, events.append, reuse_prefix=reuse
            )
            scheduler.submit([sequence])
            asked.append(events)
        while scheduler.step():
            pass
        for history, events, written in zip(histories, asked, answers, strict=True):
            tokens = [event.token for event in events]
            written.append(tokens)
            history += [int(token) for token in tokens if token is not None]
    counters = scheduler.counters
    assert scheduler.store.nbytes <= scheduler.store.limit
    return Talk(
        answers, counters.prompt_tokens, counters.prompt_tokens - counters.cached_tokens, scheduler.store.nbytes
    )


def questions(count: int, turns: int, vocab_size: int, longest: int) -> list[list[list[int]]]:
    rng = np.random.default_rng(5)
    return [
        [rng.integers(0, vocab_size, rng.integers(longest // 2, longest + 1)).tolist() for _ in range(turns)]
        for _ in range(count)
    ]


@pytest.mark.slow
def test_a_hundred_conversations_on_four_rows() -> None:
    """8 turns each, a common system prompt of 500 tokens; float32, so answers are those of whole computations."""
    folder = scratch() / "cache-memory"
    checkpoint = tiny_checkpoint(max_position_embeddings=2048)
    sizes = {"batch": 4, "context": 1536, "buckets": (32, 128)}
    formats = {"target": "cpu", "weights": "fp32", "cache": "float32"}
    export_all([{"model": checkpoint, "out": folder, **formats, **sizes}])
    model = LlamaForCausalLM.from_pretrained(folder)
    system = np.random.default_rng(1).integers(0, 256, 500).tolist()
    asked = questions(100, 8, 256, 60)
    kept = talk(model, system, asked, 40, cache_memory=1000 * MEGABYTES)
    assert kept.computed_tokens <= 0.15 * kept.prompt_tokens, kept.computed_tokens / kept.prompt_tokens
    model.forget()
    rows_only = talk(model, system, asked[:20], 40)
    assert rows_only.computed_tokens > 0.3 * rows_only.prompt_tokens  # the rows alone do not suffice
    whole = talk(model, system, asked[:20], 40, reuse=False)
    assert whole.computed_tokens == whole.prompt_tokens
    shown = f"{kept.computed_tokens / kept.prompt_tokens:.3f} of {kept.prompt_tokens:,}; {kept.stored / 1e6:.0f} MB"
    print(shown)
    assert kept.answers[:20] == rows_only.answers == whole.answers


def test_conversations_go_on_where_their_row_was_taken_over(tmp_path: Path) -> None:
    model = load(tmp_path, batch=2, eos_token_id=())
    asked = questions(6, 3, 50, 6)
    system = prompt_of(20, 1)
    kept = talk(model, system, asked, 3, chunk=4, cache_memory=MEGABYTES)
    model.forget()
    whole = talk(model, system, asked, 3, chunk=4, reuse=False)
    assert kept.answers == whole.answers
    assert kept.computed_tokens < 0.3 * whole.computed_tokens == 0.3 * kept.prompt_tokens
    model.forget()
    small = talk(model, system, asked, 3, chunk=4, cache_memory=10_000)
    assert small.answers == whole.answers and 0 < small.stored <= 10_000
    assert kept.computed_tokens < small.computed_tokens < whole.computed_tokens


def test_usage_and_metrics_count_restored_tokens(tmp_path: Path) -> None:
    model = load(tmp_path, batch=1, eos_token_id=())
    scheduler = Scheduler(model.engine, chunk=4, cache_memory=MEGABYTES)
    first, other = Client(model, prompt_of(10, 3), 5), Client(model, prompt_of(9, 30), 5)
    again = Client(model, [*first.prompt, *continuation(first.prompt, 5), 8], 5)
    for client in (first, other, again):
        scheduler.submit([client.sequence])
    finish_all(scheduler)
    assert again.sequence.cached_tokens == 12 == scheduler.counters.restored_tokens  # of 14 in the row, in whole chunks
    assert again.tokens == continuation(again.prompt, 5)
    assert scheduler.store.nbytes > 0


def test_a_request_with_a_seed_takes_nothing_and_still_leaves_what_was_there(tmp_path: Path) -> None:
    model = load(tmp_path, batch=1, eos_token_id=())
    scheduler = Scheduler(model.engine, chunk=4, cache_memory=MEGABYTES)
    first = Client(model, prompt_of(10, 3), 2)
    fresh, again = Client(model, first.prompt, 2, reuse_prefix=False), Client(model, first.prompt, 2)
    other = Client(model, prompt_of(9, 30), 2)
    for client in (first, fresh, other, again):
        scheduler.submit([client.sequence])
    finish_all(scheduler)
    assert fresh.sequence.cached_tokens == 0 and again.sequence.cached_tokens == 8
    assert first.tokens == fresh.tokens == again.tokens


def served(artifact: Path, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(artifact), *given], argparse.Namespace(debug=False))


def test_memory_that_is_not_there_is_refused(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = memory.memory_needed(Artifact.open(tiny_artifact).manifest, "copy")
    monkeypatch.setattr(memory, "available_memory", lambda: Limit(needed + 50 * MEGABYTES, "a test"))
    with pytest.raises(UserError, match=r"--cache-memory is 60 MB, .* are available \(a test\). Give a smaller"):
        command.load_with_cache_memory(served(tiny_artifact, "--cache-memory", "60"))
    model, given = command.load_with_cache_memory(served(tiny_artifact, "--cache-memory", "40"))
    assert given == 40 * MEGABYTES and model.engine.batch == 2
    _, usual = command.load_with_cache_memory(served(tiny_artifact))
    assert usual == (needed + 50 * MEGABYTES) // 4
    with pytest.raises(UserError, match="--cache-memory is -1; needed: 0 or more"):
        command.run(served(tiny_artifact, "--cache-memory", "-1"))
