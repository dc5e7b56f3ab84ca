"""`serve --prompt-lookup`: the same answers in fewer passes, only while an answer runs alone; what usage counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from edgellama.cli.options import prompt_lookup
from edgellama.engine.engine import Engine
from edgellama.errors import UserError
from edgellama.generation.speculative import Pace
from edgellama.model import LlamaForCausalLM
from edgellama.serve.responses import usage
from edgellama.serve.scheduler import Scheduler
from support.scheduled import Client, finish_all
from support.serving import serving
from support.toy_model import continuation, load

ARTIFACT = Path(__file__).parents[1] / "data/compatibility/0.2.0/cpu-int8"
PROMPT = [5, 6, 7]
TEXT = continuation(PROMPT, 30)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses at every step: whether that pays depends on the time, which no test measures."""
    monkeypatch.setattr(Pace, "length", lambda self: self._next)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    """The toy with three rows. Its states are logits: those of one pass for each token."""
    toy = load(tmp_path, batch=3, eos_token_id=())

    def hidden(tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        found = []
        for column in range(tokens.shape[1]):
            one = toy.engine.forward(tokens[:, column : column + 1], start + column, (length > column).astype(int))
            found.append(one.copy())
        return np.stack(found, axis=1)

    monkeypatch.setattr(toy.engine, "hidden", hidden)
    monkeypatch.setattr(Engine, "head", SimpleNamespace(logits=lambda states: states))
    return toy


class Known:
    """Guesses the toy's continuation of PROMPT, with a wrong token at each of some places."""

    def __init__(self, *wrong: int) -> None:
        self.wrong = wrong

    def guess(self, ids: np.ndarray, most: int) -> np.ndarray:
        begin = len(ids) - len(PROMPT)
        return np.array([TEXT[i] + (i in self.wrong) for i in range(begin, begin + most)])


def scheduler(model: LlamaForCausalLM, guesser: Any) -> Scheduler:
    made = Scheduler(model.engine, prompt_lookup=4)
    made._lookup.guesser = guesser
    return made


@pytest.mark.parametrize(
    ("wrong", "passes", "accepted", "rejected"), [((), 4, 15, 0), ((1,), 6, 13, 4), (range(30), 19, 0, 0)]
)
def test_an_answer_alone_takes_fewer_passes(
    model: LlamaForCausalLM, wrong: tuple[int, ...], passes: int, accepted: int, rejected: int
) -> None:
    served = scheduler(model, Known(*wrong))
    client = Client(model, PROMPT, 20)
    served.submit([client.sequence])
    finish_all(served)
    assert client.tokens == TEXT[:20] and client.reason == "length"
    assert served.counters.decode_passes == served.counters.timings.decode_steps == passes
    assert served.counters.new_tokens == 20
    sequence = client.sequence
    assert sequence.accepted_tokens == served.counters.timings.accepted_tokens == accepted == 19 - passes
    assert sequence.accepted_tokens + sequence.rejected_tokens == served.counters.timings.guessed_tokens
    assert sequence.rejected_tokens == rejected or len(wrong) == 30
    assert sequence.computed_tokens == len(PROMPT) + 19
    details = usage([sequence, sequence], 1)["completion_tokens_details"]
    assert details == {
        "accepted_prediction_tokens": 2 * accepted,
        "rejected_prediction_tokens": 2 * sequence.rejected_tokens,
    }


def test_answers_that_run_together_are_not_guessed(model: LlamaForCausalLM) -> None:
    served = scheduler(model, Known())
    clients = [Client(model, PROMPT, 12), Client(model, [9], 4)]
    served.submit([client.sequence for client in clients])
    while len(clients[1].tokens) < 4:
        served.step()
    assert served.counters.timings.guessed_tokens == 0
    finish_all(served)
    assert clients[0].tokens == TEXT[:12] and clients[1].tokens == continuation([9], 4)
    assert served.counters.timings.guessed_tokens > 0 == clients[1].sequence.accepted_tokens


def test_without_the_option_nothing_is_guessed(model: LlamaForCausalLM) -> None:
    served = Scheduler(model.engine)
    client = Client(model, [5, 6, 5, 6, 5, 6], 8)
    served.submit([client.sequence])
    finish_all(served)
    assert served.counters.timings.guessed_tokens == 0 and served.counters.decode_passes == 7


def test_a_pass_that_fails_ends_its_answer_only(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    served = scheduler(model, Known())
    client, later = Client(model, PROMPT, 9), Client(model, PROMPT, 3)
    served.submit([client.sequence])
    with monkeypatch.context() as broken:
        broken.setattr(model.engine, "hidden", lambda *_: 1 / 0)
        finish_all(served)
    assert isinstance(client.events[-1].error, ZeroDivisionError)
    served.submit([later.sequence])
    finish_all(served)
    assert later.tokens == TEXT[:3]


def test_the_endpoint_counts_guesses_and_gives_the_same_answer() -> None:
    """A real artifact, whose biased answer repeats the prompt."""
    model = LlamaForCausalLM.from_pretrained(ARTIFACT, threads=1)
    bias = {str(ord(letter)): 100 for letter in "ab"}
    request = {"prompt": "ab" * 6, "max_tokens": 24, "temperature": 0, "logit_bias": bias, "logprobs": 2}
    found = []
    for lookup in (0, 7):
        with serving(model, prompt_lookup=lookup) as (service, address):
            answer = httpx.post(f"{address}/v1/completions", json={"model": service.name, **request}).json()
            metrics = httpx.get(f"{address}/metrics").text
        details = answer["usage"].pop("completion_tokens_details")
        found.append((answer["choices"], answer["usage"]["completion_tokens"]))
        accepted, rejected = details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]
        assert (accepted > 0) == (lookup > 0) and (lookup > 0 or rejected == 0)
        assert f"edgellama_accepted_tokens_total {accepted:.1f}" in metrics
        assert f"edgellama_guessed_tokens_total {accepted + rejected:.1f}" in metrics
    assert found[0] == found[1]


def test_the_option_is_checked() -> None:
    assert [prompt_lookup(SimpleNamespace(prompt_lookup=x)) for x in (None, 1, 9)] == [0, 1, 9]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--prompt-lookup is 0; needed: a whole number, at least 1"):
        prompt_lookup(SimpleNamespace(prompt_lookup=0))  # type: ignore[arg-type]
