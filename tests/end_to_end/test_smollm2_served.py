"""SmolLM2-135M-Instruct int8, served with eight rows: simultaneous clients get the tokens that each gets alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from support.checkpoints import export_all
from support.child import REPOSITORY
from support.serving import client, serving

pytestmark = pytest.mark.slow

CLIENTS, NEW_TOKENS = 8, 64
CALLS = 20
TEMPLATE = REPOSITORY / "runtime" / "tools" / "smollm2.jinja"
CITIES = ("Rome", "São Paulo", "Beijing", "New York", "Nairobi")
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
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


@pytest.fixture
def with_tools(server: tuple[Service, str]) -> Iterator[tuple[Service, str]]:
    tokenizer = server[0].model.tokenizer
    before = tokenizer.chat_template
    tokenizer.use_chat_template(TEMPLATE)
    yield server
    tokenizer.chat_template = before


def test_the_template_without_tools_writes_what_the_models_own_does(with_tools: tuple[Service, str]) -> None:
    tokenizer = with_tools[0].model.tokenizer
    mine, theirs = tokenizer.chat_template, (with_tools[0].model.artifact.path / "chat_template.jinja").read_text()
    user, system = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
    for messages in ([user], [system, user], [user, {"role": "assistant", "content": "Yes?"}, user]):
        tokenizer.chat_template = mine
        written = tokenizer.render_chat(messages)
        tokenizer.chat_template = theirs
        assert written == tokenizer.render_chat(messages)


def test_required_calls_always_parse_and_validate(with_tools: tuple[Service, str]) -> None:
    """At temperature 1, so that the small model would often write something else."""
    service, address = with_tools
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]

    def call(index: int) -> str:
        done = client(address).chat.completions.create(
            model=service.name,
            messages=[{"role": "user", "content": f"How warm is it in {CITIES[index % len(CITIES)]}?"}],
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=1,
            seed=index,
            max_tokens=120,
        )
        (choice,) = done.choices
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        (made,) = choice.message.tool_calls
        jsonschema.validate(json.loads(made.function.arguments), WEATHER)
        return made.function.name

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(call, range(CALLS))) == ["weather"] * CALLS
