"""Bad requests get OpenAI's error object, and a stream that runs at the same time is not affected."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from edgellama.serve.fields.base import RequestLimits
from edgellama.serve.request import ChatRequest, CompletionRequest, GenerationRequest
from support.serving import Gate, client, serving, wait_until, with_template


@pytest.fixture(scope="module")
def server(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    model = LlamaForCausalLM.from_pretrained(with_template(tiny_artifact, tmp_path_factory.mktemp("served") / "tiny"))
    with serving(model, hosts={"127.0.0.1"}) as running:
        yield running


@pytest.fixture
def name(server: tuple[Service, str]) -> str:
    return server[0].name


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": []}, 400, "messages: "),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        "messages.0.content.0: the part has the type 'image_url', and this model reads text only",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "x" * 9000}]}]}, 400, "messages.0.content.0"),
    ({"audio": {"voice": "x"}}, 400, "audio: not supported: answers are texts"),
    ({"guided_json": {}}, 400, "guided_json: not supported: use response_format"),
    ({"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs has messages"),
    ({"max_tokens": -2}, 400, "max_tokens: "),
    ({"messages": "hello"}, 400, "messages: "),
    ({"model": "gpt-4"}, 404, "no model 'gpt-4' here"),
    ({"model": "x" * 9000}, 404, "xxx... here. Use"),
    ({"model": 3}, 400, "model: "),
    ({"temperature": 2.5}, 400, "temperature: "),
    ({"temperature": "1"}, 400, "temperature: "),
    ({"top_p": -0.1}, 400, "top_p: "),
    ({"max_tokens": 0}, 400, "max_tokens: "),
    ({"n": 1000}, 400, "n: "),
    ({"n": 100}, 400, "more answers (prompts times n) than the limit of 66"),
    ({"stop": [""]}, 400, "stop"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias of 'x'"),
    ({"logit_bias": {"264": 1}}, 400, "logit_bias of '264'"),
    ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias of '999999999999...9999999999999' is 1. Give a token id"),
    ({"logit_bias": {"5": "1"}}, 400, "logit_bias of '5' is '1'. Give a token id"),
    ({"logit_bias": {"5": 10**4000}}, 400, "logit_bias of '5' is 1000000000"),
    ({"repetition_penalty": 1e-300, "temperature": 1}, 400, "repetition_penalty: "),
    ({"repetition_penalty": 1e300, "temperature": 1}, 400, "repetition_penalty: "),
    ({"functions": [{"name": "f"}]}, 400, "functions: "),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "this model's chat template has no tools"),
    ({"max_tokens": 1.5}, 400, "max_tokens: "),
    ({"max_tokens": True}, 400, "max_tokens: "),
    ({"top_logprobs": 2}, 400, "goes with logprobs"),
    ({"tools": [{"type": "function"}]}, 400, "tools.0.function: "),
    ({"x" * 5000: True}, 400, "x" * 100 + "...: this server has no such field"),
    ({"frobnicate": True}, 400, "frobnicate: this server has no such field"),
    ({"messages": [{"role": "user", "content": "x" * 100}]}, 400, "the prompt has 105 tokens;"),
    ({"messages": [{"role": "user", "content": "x" * 1000}]}, 400, "the prompt has 112 tokens or more;"),
    ({"messages": [{"role": "user", "content": "x"}] * 64}, 400, "the prompt has 64 messages"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format: "),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}},
        400,
        "response_format: Invalid type: foo",
    ),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, 400, "needs an eos token"),
]
RAW: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"{", {}, 400, "the body is not JSON"),
    (b"", {}, 400, "the body is not JSON"),
    (b"\xff\xfe{}", {}, 400, "the body is not JSON"),
    (b"[]", {}, 400, "be an object"),
    (b'{"messages": ' + b"[" * 100_000, {}, 400, "the body is not JSON"),
    (b'{"model": "\\ud800"}', {}, 400, ""),
    (b"{}", {"content-type": "text/plain"}, 415, "Content-Type: application/json"),
    (b" " * (9 << 20), {}, 413, "8,388,608 bytes"),
    (b"{}", {"host": "9" * 9000}, 403, "999.... Use "),
    (b"{}", {"host": "evil.example"}, 403, "this server's name is not 'evil.example'"),
]


@pytest.fixture(scope="class")
def untouched(server: tuple[Service, str]) -> Iterator[None]:
    """Runs a stream while bad requests arrive, and checks that its text is the same as without them."""
    service, address = server
    gate = Gate(service.model)
    asked: dict[str, Any] = {"model": service.name, "prompt": "hello", "max_tokens": 50, "temperature": 0}
    alone = client(address).completions.create(**asked).choices[0].text
    service.model.engine.forward = gate  # type: ignore[method-assign]
    parts: list[str] = []

    def stream() -> None:
        parts.extend(part.choices[0].text for part in client(address).completions.create(stream=True, **asked))

    thread = threading.Thread(target=stream)
    thread.start()
    gate.passes.release(10)
    wait_until(lambda: service.scheduler.running == 1)
    yield
    assert service.scheduler.running == 1
    gate.open.set()
    thread.join()
    del service.model.engine.forward
    assert "".join(parts) == alone


@pytest.mark.usefixtures("untouched")
class TestBadInput:
    @pytest.mark.parametrize(("wrong", "status", "message"), BAD)
    def test_an_error_names_what_is_wrong(
        self, server: tuple[Service, str], name: str, wrong: dict[str, Any], status: int, message: str
    ) -> None:
        body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **wrong}
        answer = httpx.post(f"{server[1]}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error" and message in error["message"]
        if "the prompt has" in message:
            assert error["code"] == "context_length_exceeded"

    @pytest.mark.parametrize(("body", "headers", "status", "message"), RAW)
    def test_invalid_bodies(
        self, server: tuple[Service, str], body: bytes, headers: dict[str, str], status: int, message: str
    ) -> None:
        answer = httpx.post(
            f"{server[1]}/v1/chat/completions",
            content=body,
            headers={"content-type": "application/json", **headers},
            timeout=60,
        )
        assert answer.status_code == status and message in answer.json()["error"]["message"]

    def test_a_huge_body_without_a_declared_length(self, server: tuple[Service, str]) -> None:
        def pieces() -> Iterator[bytes]:
            for _ in range(64):
                yield b" " * (1 << 18)

        try:
            answer = httpx.post(
                f"{server[1]}/v1/completions",
                content=pieces(),
                headers={"content-type": "application/json"},
                timeout=60,
            )
        except httpx.TransportError:  # the server closed the connection early
            return
        assert answer.status_code == 413

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ([], "with at least one token"),
            ([None], "with at least one token"),
            ("", "prompt"),
            ([264], "token id 264"),
            ([-1], "prompt"),
            ([10**25], "prompt.0: "),
            ([[1], [10**25]], "prompt.1.0: "),
            ([1] * 64, "the prompt has 64 tokens"),
            ([1.5], "prompt"),
            ([1, "a"], "prompt.1: "),
            ([[1], []], "prompt"),
            ([[1]] * 1_000_000, "more answers (prompts times n)"),
        ],
    )
    def test_bad_prompts(self, server: tuple[Service, str], name: str, prompt: Any, message: str) -> None:
        answer = httpx.post(f"{server[1]}/v1/completions", json={"model": name, "prompt": prompt}, timeout=60)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


@pytest.mark.parametrize("wrong", [{"suffix": "x"}, {"echo": 0}, {"best_of": 2}, {"logprobs": 2.5}, {"prompt": [1.5]}])
def test_values_that_only_resemble_a_valid_one_are_refused(
    server: tuple[Service, str], name: str, wrong: dict[str, Any]
) -> None:
    answer = httpx.post(f"{server[1]}/v1/completions", json={"model": name, "prompt": "x", **wrong}, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(next(iter(wrong)))


def test_integers_have_any_size(server: tuple[Service, str], name: str) -> None:
    for huge in (2**63, 10**300, 1e300):
        body = {"model": name, "prompt": "x", "max_tokens": huge, "top_k": huge}
        assert httpx.post(f"{server[1]}/v1/completions", json=body, timeout=60).status_code == 200
        answer = httpx.post(f"{server[1]}/v1/completions", json={**body, "min_tokens": huge}, timeout=60)
        assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "length"


def test_a_number_without_a_fraction_is_an_integer(server: tuple[Service, str], name: str) -> None:
    body = {"model": name, "prompt": [1.0, 2], "max_tokens": 2.0, "n": 1.0, "top_k": 1e2, "seed": 5.0, "logprobs": 1.0}
    answer = httpx.post(f"{server[1]}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2


def test_other_requests_are_served_while_a_body_is_read(
    server: tuple[Service, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validating a large body takes a second. Here it takes until another request has been answered."""
    reading, asked = threading.Event(), threading.Event()
    validate = CompletionRequest.model_validate_json

    def slowly(*arguments: Any, **options: Any) -> CompletionRequest:
        reading.set()
        assert asked.wait(60)
        return validate(*arguments, **options)

    monkeypatch.setattr(CompletionRequest, "model_validate_json", slowly)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(httpx.post, f"{server[1]}/v1/completions", json={"model": name, "prompt": ""}, timeout=60)
        try:
            assert reading.wait(60)
            assert httpx.get(f"{server[1]}/health", timeout=10).status_code == 200
        finally:
            asked.set()
        assert done.result().status_code == 400


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (CompletionRequest, {"prompt": [1.5] * 1000}),
        (CompletionRequest, {"prompt": [1] + ["a"] * 1000}),
        (CompletionRequest, {"prompt": ["a"] + [1] * 1000}),
        (CompletionRequest, {"prompt": [[1]] + [["a"]] * 1000}),
        (ChatRequest, {"messages": ["a"] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 1000}]}),
        (ChatRequest, {"messages": [{"role": "user", **{f"field{i}": 1 for i in range(1000)}}]}),
        (ChatRequest, {"modalities": ["audio"] * 1000}),
        (ChatRequest, {f"field{i}": 1 for i in range(1000)}),
        (ChatRequest, {"stop": [1] * 1000}),
    ],
)
def test_validation_stops_at_the_first_wrong_element(kind: type[GenerationRequest], wrong: dict[str, Any]) -> None:
    """Listing all errors of a body of eight megabytes would block the server for half a minute."""
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", **wrong}
    del body["prompt" if kind is ChatRequest else "messages"]
    with pytest.raises(ValidationError) as refused:
        kind.model_validate_json(json.dumps(body), context=RequestLimits(context=10_000, sequences=10_000))
    assert refused.value.error_count() < 20
