"""SmolLM2-135M-Instruct int8, served with eight rows: simultaneous clients get the tokens that each gets alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from support.checkpoints import export_all
from support.serving import client, serving

pytestmark = pytest.mark.slow

CLIENTS, NEW_TOKENS = 8, 64
WORDS = (3, 20, 40, 90, 128, 150, 300, 700)  # of each client's prompt: under, at and over buckets and chunks


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    out = tmp_path_factory.mktemp("smollm2") / "int8"
    job = {"model": smollm2_gguf, "target": "cpu", "weights": "int8", "batch": CLIENTS, "out": out, "verify": False}
    with serving(LlamaForCausalLM.from_pretrained(export_all([job])[0])) as running:
        yield running


def ask(server: tuple[Service, str], index: int) -> list[tuple[str, float]]:
    """Stream a greedy answer. Returns (token, log-probability) of each token."""
    service, address = server
    messages: Any = [{"role": "user", "content": f"Continue: {'one two three five ' * (WORDS[index] // 4)} {index}"}]
    found = []
    for chunk in client(address).chat.completions.create(
        model=service.name, messages=messages, temperature=0, max_tokens=NEW_TOKENS, stream=True, logprobs=True
    ):
        if chunk.choices and chunk.choices[0].logprobs:
            found += [(entry.token, entry.logprob) for entry in chunk.choices[0].logprobs.content or []]
    return found


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_clients_at_once_get_what_each_gets_alone(server: tuple[Service, str], pause: float) -> None:
    """The log-probabilities are equal, too, to the last digit: every pass is one that the answer would have alone."""
    alone = []
    for index in range(CLIENTS):
        server[0].model.forget()  # nothing of it is in the cache
        alone.append(ask(server, index))
    server[0].model.forget()

    def arrive(index: int) -> list[tuple[str, float]]:
        time.sleep(pause * index)
        return ask(server, index)

    leaving = threading.Thread(target=leave, args=(server,))
    leaving.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(arrive, range(CLIENTS)))
    leaving.join()
    assert together == alone
    assert len({tuple(token for token, _ in answer) for answer in alone}) > CLIENTS // 2


def leave(server: tuple[Service, str]) -> None:
    """A ninth client, which disconnects in the middle of its answer."""
    service, address = server
    with client(address).completions.create(
        model=service.name, prompt="Once upon a time", max_tokens=400, stream=True, temperature=1.0
    ) as stream:
        for _, _ in zip(range(5), stream, strict=False):
            pass
