"""What clients send besides the usual fields: names, hints, template variables, token ids, origins."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgellama.errors import UserError
from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from edgellama.serve.command import allowed_hosts, check_names
from edgellama.serve.request import HINTS
from support.serving import client, serving, with_template

SITE = "https://chat.example"


@pytest.fixture(scope="module")
def model(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = with_template(tiny_artifact, tmp_path_factory.mktemp("served") / "tiny")
    template = folder / "chat_template.jinja"
    template.write_text("{{ mood }}" + template.read_text())
    return LlamaForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def server(model: LlamaForCausalLM) -> Iterator[tuple[Service, str]]:
    with serving(model, hosts={"127.0.0.1"}, aliases=["gpt-4o", "org/model"], origins=[SITE]) as running:
        yield running


def post(address: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(address + path, json=body, timeout=60)


def test_an_alias_is_a_name_of_the_model(server: tuple[Service, str]) -> None:
    service, address = server
    api = client(address)
    names = [service.name, "gpt-4o", "org/model"]
    assert [entry.id for entry in api.models.list()] == names
    for name in names:
        done = api.completions.create(model=name, prompt="hi", max_tokens=1, temperature=0)
        assert done.model == name == api.models.retrieve(name).id
    listed = httpx.get(f"{address}/v1/models").json()
    assert httpx.get(f"{address}/v1/models/").json() == listed
    assert httpx.get(f"{address}/v1/models/org/model/").json() == listed["data"][2]
    refused = post(address, "/v1/completions", model="other", prompt="x")
    assert refused.status_code == 404 and "'gpt-4o' or 'org/model'" in refused.json()["error"]["message"]


def test_hints_change_nothing_and_are_logged_once(model: LlamaForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    hints: dict[str, Any] = {"reasoning_effort": "low", "verbosity": "high", "cache_prompt": True}
    hints |= {"prediction": {"type": "content", "content": "x"}, "cache_control": {"type": "ephemeral"}}
    hints |= {"prompt_cache_retention": "24h"}
    assert set(hints) == set(HINTS)
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    with serving(model) as (service, address), caplog.at_level(logging.WARNING, "edgellama.serve"):
        asked: dict[str, Any] = {"model": service.name, "max_tokens": 6, "temperature": 0}
        plain, hinted, again = (
            post(address, "/v1/chat/completions", **asked, messages=[{"role": "user", "content": content}], **more)
            for content, more in (("hi", {}), ([part], hints), ("hi", hints))
        )
        texts = [answer.json()["choices"][0]["message"]["content"] for answer in (plain, hinted, again)]
        assert len(set(texts)) == 1
        assert sorted(record.args[0] for record in caplog.records if record.args) == sorted(HINTS)  # type: ignore[index]
        ended = post(address, "/v1/completions", **asked, prompt="hi", suffix="")
        assert ended.status_code == 200


def test_a_limit_of_minus_one_is_what_the_context_holds(server: tuple[Service, str], model: LlamaForCausalLM) -> None:
    service, address = server
    for path, body in (
        ("/v1/completions", {"prompt": "hi", "max_tokens": -1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": -1}),
    ):
        done = post(address, path, model=service.name, ignore_eos=True, **body).json()
        assert done["usage"]["total_tokens"] == model.engine.context


def test_variables_reach_the_template(server: tuple[Service, str], model: LlamaForCausalLM) -> None:
    service, address = server
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    for variables in ({}, {"mood": "gay"}, {"mood": None, "unknown": [1, {"a": "b"}]}, {"generate": 1, "0": 2}):
        text = str(variables.get("mood", "")) + "u:hi|a:"
        tokens = post(address, "/tokenize", **asked, chat_template_kwargs=variables).json()["tokens"]
        assert tokens == model.tokenizer.encode(text, add_special_tokens=False)
        chat = post(
            address, "/v1/chat/completions", model=service.name, max_tokens=1, chat_template_kwargs=variables, **asked
        )
        assert chat.json()["usage"]["prompt_tokens"] == len(tokens)


def test_token_ids_and_back(server: tuple[Service, str], model: LlamaForCausalLM) -> None:
    address = server[1]
    for text in ("hello", "héé 🙂", ""):
        for special in (True, False):
            found = post(address, "/tokenize", prompt=text, add_special_tokens=special, return_token_strs=True).json()
            ids = model.tokenizer.encode(text, add_special_tokens=special)
            assert found["tokens"] == ids and found["count"] == len(ids) == len(found["token_strs"])
            assert found["max_model_len"] == model.engine.context
            back = post(address, "/detokenize", tokens=ids).json()["prompt"]
            assert back == model.tokenizer.decode(ids, skip_special_tokens=False)
    message = [{"role": "user", "content": "x"}]
    rendered = post(address, "/tokenize", messages=message, add_generation_prompt=False).json()["tokens"]
    assert rendered == model.tokenizer.encode("u:x|", add_special_tokens=False)
    long = "word " * 2000  # more than the context holds
    assert post(address, "/tokenize", prompt=long).json()["count"] == len(model.tokenizer.encode(long))


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "one of prompt and messages"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "one of prompt and messages"),
        ("/tokenize", {"prompt": "x" * ((1 << 20) + 1)}, "at most 1048576 characters"),
        (
            "/tokenize",
            {
                "messages": [{"role": "user", "content": "x"}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
            "this model's chat template has no tools",
        ),
        ("/detokenize", {"tokens": [264]}, "token id 264; this model's are 0..263"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": "x"}, "tokens: "),
        ("/detokenize", {"tokens": [1], "model": "other"}, "no model 'other' here"),
    ],
)
def test_token_ids_that_are_refused(server: tuple[Service, str], path: str, body: dict[str, Any], message: str) -> None:
    answer = post(server[1], path, **body)
    assert answer.status_code in (400, 404) and message in answer.json()["error"]["message"]


def test_pages_of_a_named_site_may_read_answers(server: tuple[Service, str], model: LlamaForCausalLM) -> None:
    ask = {"origin": SITE, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = httpx.options(f"{server[1]}/v1/chat/completions", headers=ask)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == SITE
    assert "content-type" in preflight.headers["access-control-allow-headers"]
    assert httpx.get(f"{server[1]}/v1/models", headers={"origin": SITE}).headers["access-control-allow-origin"] == SITE
    body = {"model": server[0].name, "prompt": "hi", "max_tokens": 2, "stream": True}
    streamed = httpx.post(f"{server[1]}/v1/completions", json=body, headers={"origin": SITE}, timeout=60)
    assert streamed.headers["access-control-allow-origin"] == SITE and "[DONE]" in streamed.text
    other = httpx.options(f"{server[1]}/v1/chat/completions", headers={**ask, "origin": "https://evil.example"})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    with serving(model) as (_, address):
        refused = httpx.options(f"{address}/v1/chat/completions", headers=ask)
        assert refused.status_code == 405 and "access-control-allow-origin" not in refused.headers


def test_names_of_the_command_line() -> None:
    local = {"localhost", "127.0.0.1", "::1"}
    assert allowed_hosts("127.0.0.1", []) == local
    assert allowed_hosts("127.0.0.1", ["Proxy.example"]) == local | {"proxy.example"}
    assert allowed_hosts("0.0.0.0", []) is None
    assert allowed_hosts("0.0.0.0", ["[fe80::1]"]) == local | {"0.0.0.0", "fe80::1"}
    assert allowed_hosts("127.0.0.1", ["*"]) is None
    check_names(["a"], ["proxy.example", "10.0.0.1", "::1", "*"], ["*", SITE, "http://[::1]:8080"])
    for wrong in (
        ([" "], [], []),
        (["a\n"], [], []),
        ([], ["proxy.example:80"], []),
        ([], ["http://proxy"], []),
        ([], [], ["chat.example"]),
        ([], [], ["https://chat.example/"]),
    ):
        with pytest.raises(UserError, match=r"--(alias|allowed-host|cors)"):
            check_names(*wrong)
