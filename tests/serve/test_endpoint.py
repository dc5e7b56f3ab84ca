"""The endpoint over loopback, with OpenAI's client and a real tiny artifact."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgellama.generation.config import GenerationConfig
from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from edgellama.serve.preprocess import Preprocessor
from edgellama.serve.request import CompletionRequest
from support.serving import Gate, client, serving, wait_until, with_template

ROWS, CONTEXT, VOCAB = 2, 64, 264
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(with_template(tiny_artifact, tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="module")
def server(model: LlamaForCausalLM) -> Iterator[tuple[Service, str]]:
    with serving(model, hosts={"127.0.0.1"}) as running:
        yield running


def continuation(model: LlamaForCausalLM, prompt: list[int], count: int) -> str:
    """The text that greedy generate() gives."""
    ids = model.generate([prompt], max_new_tokens=count, do_sample=False)[0, len(prompt) :].tolist()  # type: ignore[index]
    return model.tokenizer.decode(ids)


def chat_prompt(model: LlamaForCausalLM, *messages: str) -> list[int]:
    return model.tokenizer.encode("".join(f"{message}|" for message in messages) + "a:")


def test_models(api: openai.OpenAI, name: str) -> None:
    assert [model.id for model in api.models.list()] == [name]
    assert api.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("other/model")


def test_a_completion_is_what_generate_writes(api: openai.OpenAI, name: str, model: LlamaForCausalLM) -> None:
    for prompt in ("hello", "x" * 40):
        ids = model.tokenizer.encode(prompt)
        done = api.completions.create(model=name, prompt=prompt, **GREEDY)
        assert done.choices[0].text == continuation(model, ids, 12)
        assert done.choices[0].finish_reason == "length"
        assert done.usage is not None
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ids), 12)
        again = api.completions.create(model=name, prompt=ids, **GREEDY)
        assert again.choices[0].text == done.choices[0].text


def test_a_chat_goes_through_the_template(api: openai.OpenAI, name: str, model: LlamaForCausalLM) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    messages: list[Any] = [{"role": "developer", "content": "be"}, {"role": "user", "content": parts}]
    first = api.chat.completions.create(model=name, messages=messages, **GREEDY)
    answer = first.choices[0].message
    assert answer.role == "assistant"
    assert answer.content == continuation(model, chat_prompt(model, "s:be", "u:hi"), 12)
    # the history has the answer unchanged, with its null fields
    history = [
        *messages,
        answer.model_dump(),
        {"role": "user", "content": "so"},
    ]
    second = api.chat.completions.create(model=name, messages=history, temperature=0, max_completion_tokens=3)
    expected = continuation(model, chat_prompt(model, "s:be", "u:hi", f"a:{answer.content}", "u:so"), 3)
    assert second.choices[0].message.content == expected


def test_fields_that_only_state_the_default_are_taken(api: openai.OpenAI, name: str) -> None:
    plain = api.completions.create(model=name, prompt="hello", **GREEDY).choices[0].text
    assert api.completions.create(model=name, prompt="hello", echo=False, **GREEDY).choices[0].text == plain
    asked: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "hello"}], **GREEDY}
    stated = api.chat.completions.create(functions=[], function_call="none", **asked)
    assert stated.choices[0].message.content == api.chat.completions.create(**asked).choices[0].message.content


def test_log_probabilities_of_prompts_need_another_target(api: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "prompt": "hello", "echo": True, **GREEDY}
    assert api.completions.create(**asked).choices[0].text.startswith("hello")
    with pytest.raises(openai.BadRequestError, match="TARGET=cpu"):
        api.completions.create(**asked, logprobs=1)


def test_a_chat_without_a_limit_ends_when_the_context_is_full(api: openai.OpenAI, name: str) -> None:
    done = api.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "hello"}], temperature=0, extra_body={"ignore_eos": True}
    )
    assert done.usage is not None and done.usage.total_tokens == CONTEXT
    assert done.choices[0].finish_reason == "length"


def test_streams_join_to_the_whole_answers(api: openai.OpenAI, name: str) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    asked: dict[str, Any] = {"model": name, "max_tokens": 20, "temperature": 1.5, "seed": 5, "n": 3}
    whole = api.chat.completions.create(messages=messages, **asked)
    texts, reasons, roles = ["", "", ""], [None] * 3, [None] * 3
    for chunk in api.chat.completions.create(messages=messages, stream=True, **asked):
        assert chunk.usage is None
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[call-overload]
            roles[choice.index] = choice.delta.role or roles[choice.index]  # type: ignore[call-overload]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == ["assistant"] * 3 and len(set(texts)) == 3
    text, usages = "", []
    asked = {"model": name, "prompt": ["hello", "yes"], "n": 2, **GREEDY}
    for part in api.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        usages.append(part.usage)
        text += "".join(choice.text for choice in part.choices if choice.index == 2)
    plain = api.completions.create(**asked)
    assert text == plain.choices[2].text and [choice.index for choice in plain.choices] == [0, 1, 2, 3]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1].prompt_tokens == 8 and usages[-1].completion_tokens == 48  # type: ignore[union-attr]


def test_concurrent_streams_get_what_each_gets_alone(server: tuple[Service, str], name: str) -> None:
    prompts = [f"{i} " * (1 + 3 * i) for i in range(8)]  # 2 to 44 bytes, on two rows

    def stream(prompt: str) -> str:
        parts = client(server[1]).completions.create(model=name, prompt=prompt, stream=True, **GREEDY)
        return "".join(part.choices[0].text for part in parts)

    alone = [stream(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(stream, prompts)) == alone
    assert len(set(alone)) == len(alone)


def test_seeds_stops_biases_and_penalties(api: openai.OpenAI, name: str, model: LlamaForCausalLM) -> None:
    q, r, s = model.tokenizer.encode("qrs")

    def text(**asked: Any) -> str:
        return api.completions.create(**{"model": name, "prompt": "hello", "max_tokens": 16, **asked}).choices[0].text

    sampled = {"temperature": 2.0, "seed": -7}
    assert text(**sampled) == text(**sampled) != text(temperature=2.0, seed=8)
    free = text(temperature=0)
    assert text(temperature=1e-30) == free
    for at in range(4, len(free)):
        stop = free[at - 1 : at + 1]
        stopped = api.completions.create(
            model=name, prompt="hello", stop=["\0\0\0", stop], **{**GREEDY, "max_tokens": 16}
        )
        assert stopped.choices[0].text == free[: free.index(stop)]
        assert stopped.choices[0].finish_reason == "stop"
    biased = {"max_tokens": 5, "temperature": 0, "logit_bias": {str(q): 100}}
    assert text(**biased) == "qqqqq"
    assert text(**biased, presence_penalty=2.0) == "qqqqq"  # 100 outweighs it
    close = {"max_tokens": 9, "temperature": 0, "logit_bias": {str(q): 99, str(r): 98.9, str(s): 98.8}}
    assert set(text(**close, presence_penalty=-2.0)) < set("qrs") == set(text(**close, frequency_penalty=2.0))


def test_a_request_without_settings_is_drawn_at_temperature_1(
    api: openai.OpenAI, name: str, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts(**asked: Any) -> list[str]:
        done = api.completions.create(**{"model": name, "prompt": "hello", "max_tokens": 12, **asked})
        return [choice.text for choice in done.choices]

    greedy = texts(temperature=0)
    assert len(set(texts(n=3))) == 3 and texts(seed=4) == texts(seed=4, temperature=1, top_p=1) != greedy
    for coldest in ({"top_p": 0}, {"top_p": 1e-300, "temperature": 2}):
        assert texts(**coldest) == greedy
    stored = GenerationConfig(do_sample=True, temperature=1e-3, eos_token_id=model.generation_config.eos_token_id)
    monkeypatch.setattr(model, "generation_config", stored)
    for sampling, expected in (("artifact", True), ("openai", False)):
        preprocessor = Preprocessor(model, 3, sampling)
        request = CompletionRequest.model_validate(
            {"model": name, "prompt": "hello", "seed": 4}, context=preprocessor.limits
        )
        config, _ = preprocessor._config(request)
        assert config.do_sample and (config.temperature == 1e-3) == expected


def test_the_drawn_token_is_among_the_alternatives(api: openai.OpenAI, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "max_tokens": 12, "temperature": 2, "seed": 1}
    message: list[Any] = [{"role": "user", "content": "hello"}]
    for temperature, lengths in ((2, {2}), (0, {1})):
        more = {**asked, "temperature": temperature}
        chat = api.chat.completions.create(messages=message, logprobs=True, top_logprobs=1, **more).choices[0]
        assert chat.logprobs is not None and chat.logprobs.content
        assert {len(entry.top_logprobs) for entry in chat.logprobs.content} >= lengths
        for entry in chat.logprobs.content:
            likely, *added = [(top.token, top.bytes, top.logprob) for top in entry.top_logprobs]
            drawn = (entry.token, entry.bytes, entry.logprob)
            assert added in ([], [drawn]) and (likely == drawn) == (not added) and likely[2] >= entry.logprob
    for count in (0, 1):
        found = api.completions.create(prompt="hello", logprobs=count, **asked).choices[0].logprobs
        assert found is not None and found.tokens and found.top_logprobs and found.token_logprobs
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
            assert top[token] == logprob and len(top) <= count + 1


def test_logprobs(api: openai.OpenAI, name: str, model: LlamaForCausalLM) -> None:
    ids = model.tokenizer.encode("hello")
    out = model.generate([ids], max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits = np.stack(out.logits)[:, 0].astype(np.float64)  # type: ignore[union-attr,arg-type]
    logprobs = (
        logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1)[:, None]
    )
    picked = out.sequences[0, len(ids) :]  # type: ignore[union-attr]
    asked: dict[str, Any] = {"model": name, "max_tokens": 4, "temperature": 0}
    found = api.completions.create(prompt="hello", logprobs=2, **asked).choices[0].logprobs
    assert found is not None and found.token_logprobs and found.top_logprobs and found.text_offset
    np.testing.assert_allclose(found.token_logprobs, logprobs[range(4), picked], atol=1e-4)
    assert [max(top, key=top.__getitem__) for top in found.top_logprobs] == found.tokens
    assert found.text_offset[0] == 0 and len(found.tokens or []) == 4
    template = "x" * 3  # another text: only the structure is compared
    message: list[Any] = [{"role": "user", "content": template}]
    chat = api.chat.completions.create(messages=message, logprobs=True, top_logprobs=3, **asked).choices[0]
    streamed = []
    for chunk in api.chat.completions.create(messages=message, logprobs=True, top_logprobs=3, stream=True, **asked):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert chat.logprobs is not None and chat.logprobs.content == streamed and len(streamed) == 4
    for entry in streamed:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob
    joined = b"".join(bytes(entry.bytes or []) for entry in streamed)
    assert joined.decode(errors="replace") == chat.message.content


@pytest.mark.parametrize("streaming", [False, True])
def test_logprobs_cover_the_visible_text(
    api: openai.OpenAI, name: str, model: LlamaForCausalLM, streaming: bool
) -> None:
    """Over HTTP, with a stop string of two tokens and with eos; tests/serve/test_logprobs.py has the rest."""
    letters = model.tokenizer.encode("abcdefghijklmnopqrstuvwxyz")
    eos = model.generation_config.eos_token_id[0]
    asked: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "hello"}], "logprobs": True}
    asked |= {"max_tokens": 9, "temperature": 2.0, "seed": 3, "logit_bias": {str(letter): 60 for letter in letters}}

    def completion(**more: Any) -> tuple[str, list[str]]:
        if not streaming:
            choice = api.chat.completions.create(**{**asked, **more}).choices[0]
            assert choice.logprobs is not None
            return choice.message.content or "", [entry.token for entry in choice.logprobs.content or []]
        text, tokens = "", []
        for chunk in api.chat.completions.create(stream=True, **{**asked, **more}):
            text += chunk.choices[0].delta.content or ""
            found = chunk.choices[0].logprobs
            tokens += [entry.token for entry in found.content or []] if found else []
            assert text.startswith("".join(tokens))
        return text, tokens

    free, tokens = completion()
    assert len(free) == 9 and tokens == list(free)
    stopped, tokens = completion(stop=free[4:6])
    assert stopped == free[: free.index(free[4:6])] and tokens == list(stopped)
    ended, tokens = completion(extra_body={"min_tokens": 3}, logit_bias={**asked["logit_bias"], str(eos): 100})
    assert ended == free[:3] and tokens == list(ended)


def test_response_formats(api: openai.OpenAI, name: str, model: LlamaForCausalLM) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    no_space = {str(token): -100 for token in model.tokenizer.encode(" \n")}  # whitespace could fill the small context
    asked: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "?"}], "temperature": 1.5, "n": 2}
    for seed in range(6):
        done = api.chat.completions.create(response_format=form, seed=seed, logit_bias=no_space, **asked)
        for choice in done.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content or ""), schema)
    plain = api.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "?"}], response_format={"type": "json_object"}, max_tokens=3
    )
    assert (plain.choices[0].message.content or "").startswith("{")


def test_other_paths_and_methods(server: tuple[Service, str]) -> None:
    assert httpx.get(f"{server[1]}/v1/completions").status_code == 405
    answer = httpx.get(f"{server[1]}/v1/audio")
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_disconnects_frees_its_row(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    gate = Gate(model)
    monkeypatch.setattr(model.engine, "forward", gate)
    with serving(model, gate) as (service, address):
        scheduler = service.scheduler
        body = {"model": service.name, "prompt": "hello", "max_tokens": 50, "n": 4, "stream": streaming}
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as leaving:
            content = json.dumps(body).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            leaving.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: scheduler.running + scheduler.waiting == 4)
            gate.passes.release(3)
            wait_until(lambda: scheduler.counters.new_tokens > 0)
            if streaming:
                assert leaving.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: scheduler.waiting == 0)
        gate.passes.release(1)  # the pass that was about to start
        wait_until(lambda: scheduler.running == 0)
        assert scheduler.counters.new_tokens < 10
        gate.open.set()
        text = client(address).completions.create(model=service.name, prompt="hello", **GREEDY).choices[0].text
    monkeypatch.undo()
    assert text == continuation(model, model.tokenizer.encode("hello"), 12)


def test_a_full_queue_gives_429_with_retry_after(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model)
    monkeypatch.setattr(model.engine, "forward", gate)
    with serving(model, gate, queue=1) as (service, address), ThreadPoolExecutor(3) as pool:
        asked: dict[str, Any] = {"model": service.name, "prompt": "hello", **GREEDY}
        running = [pool.submit(client(address).completions.create, **asked) for _ in range(3)]
        wait_until(lambda: service.scheduler.running + service.scheduler.waiting == 3)
        with pytest.raises(openai.RateLimitError) as refused:
            client(address).completions.create(**asked)
        assert refused.value.response.headers["retry-after"] == "1"
        gate.open.set()
        assert len({done.result().choices[0].text for done in running}) == 1


def test_a_model_that_fails_ends_the_stream_with_an_error(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(model) as (service, address):
        api = client(address)
        asked: dict[str, Any] = {"model": service.name, "prompt": "hello", **GREEDY}
        expected = api.completions.create(**asked).choices[0].text
        gate = Gate(model)
        monkeypatch.setattr(model.engine, "forward", gate)
        stream = api.completions.create(stream=True, **asked)
        gate.passes.release(2)
        next(stream)
        gate.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))  # type: ignore[assignment]
        gate.open.set()
        with pytest.raises(openai.APIError, match="the model failed"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="the model failed"):
            api.completions.create(**asked)
        monkeypatch.undo()
        assert api.completions.create(**asked).choices[0].text == expected


def test_a_key(model: LlamaForCausalLM) -> None:
    with serving(model, api_key="sésame") as (service, address):
        for wrong in ("none", "sesame"):
            with pytest.raises(openai.AuthenticationError):
                client(address, wrong).models.list()
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200 == httpx.get(f"{address}/").status_code
        headers = {"authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{address}/v1/models", headers=headers).json()["data"][0]["id"] == service.name


def test_health_metrics_and_page(model: LlamaForCausalLM) -> None:
    with serving(model) as (service, address):
        done = client(address).completions.create(model=service.name, prompt="hello", **GREEDY)
        with pytest.raises(openai.BadRequestError):
            client(address).completions.create(model=service.name, prompt="")
        assert httpx.get(f"{address}/health").json() == {
            **{"status": "ok", "model": service.name, "rows": ROWS, "running": 0, "waiting": 0}
        }
        families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
        found = {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}
        assert found[("edgellama_rows",)] == ROWS
        assert found[("edgellama_prompt_tokens_total",)] == done.usage.prompt_tokens  # type: ignore[union-attr]
        assert found[("edgellama_new_tokens_total",)] == 12
        assert found[("edgellama_decode_passes_total",)] == 11
        assert found[("edgellama_requests_total", "/v1/completions", "200")] == 1
        assert found[("edgellama_requests_total", "/v1/completions", "400")] == 1
        assert found[("edgellama_time_to_first_token_seconds_count",)] == 1
        page = httpx.get(f"{address}/")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"(src|href)=\"?(https?:)?//", page.text)  # the page loads nothing from elsewhere
        service.scheduler.close()
        assert httpx.get(f"{address}/health").status_code == 503
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            client(address).completions.create(model=service.name, prompt="hello")
