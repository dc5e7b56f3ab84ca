"""Requests to a Scheduler over the toy model, without HTTP and without the engine's thread."""

from __future__ import annotations

from typing import Any

from edgellama.generation.config import GenerationConfig
from edgellama.model import LlamaForCausalLM
from edgellama.serve.scheduler import Scheduler
from edgellama.serve.sequence import SequenceEvent, ServedSequence
from support.tiny import VOCAB


class Client:
    """An answer and what it has sent."""

    def __init__(self, model: LlamaForCausalLM, prompt: list[int], limit: int, **options: Any) -> None:
        self.events: list[SequenceEvent] = []
        self.prompt, self.limit = prompt, limit
        names = ("seed", "processors", "top_logprobs", "reuse_prefix")
        others = {name: options.pop(name) for name in names if name in options}
        config = GenerationConfig(**options)
        self.sequence = ServedSequence(prompt, limit, config, model.tokenizer, VOCAB, self.events.append, **others)

    @property
    def tokens(self) -> list[int | None]:
        return [event.token for event in self.events]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def reason(self) -> str | None:
        return self.events[-1].finish_reason if self.events else None


def finish_all(scheduler: Scheduler) -> int:
    """Steps to the end; returns the number of steps."""
    steps = 1
    while scheduler.step():
        steps += 1
        assert steps < 1000
    return steps


def prompt_of(length: int, first: int) -> list[int]:
    """Returns ids that differ at every place for another `first`."""
    return [(first + 7 * i) % VOCAB for i in range(length)]
