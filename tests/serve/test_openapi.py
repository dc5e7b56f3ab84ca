"""/openapi.json: it names every endpoint, and responses conform to it."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema
import pytest
from starlette.routing import Route

from edgellama.model import LlamaForCausalLM
from support.exported import export_tiny
from support.serving import serving, with_template


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    return LlamaForCausalLM.from_pretrained(with_template(export_tiny("cpu"), folder))


def test_responses_conform_to_the_description(model: LlamaForCausalLM) -> None:
    with serving(model, api_key="sesame") as (service, address):
        described = httpx.get(f"{address}/openapi.json").json()
        routes = {route.path.replace(":path", "") for route in service.app.routes if isinstance(route, Route)}
        assert set(described["paths"]) == routes
        chat = {"model": service.name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        completion = {"model": service.name, "prompt": "hi", "max_tokens": 2, "logprobs": 1}
        headers = {"authorization": "Bearer sesame"}
        calls: list[tuple[str, str, Any, int]] = [
            ("post", "/v1/chat/completions", chat, 200),
            ("post", "/v1/chat/completions", {**chat, "logprobs": True}, 200),
            ("post", "/v1/chat/completions", {**chat, "temperature": 9}, 400),
            ("post", "/v1/completions", completion, 200),
            ("post", "/v1/completions", {**completion, "model": "other"}, 404),
            ("post", "/v1/completions", {**completion, "echo": True}, 200),
            ("post", "/v1/embeddings", {"model": service.name, "input": ["hi", "ho"]}, 200),
            ("post", "/v1/embeddings", {"model": service.name, "input": [[1, 2]], "encoding_format": "base64"}, 200),
            ("post", "/tokenize", {"prompt": "hi", "return_token_strs": True}, 200),
            ("post", "/tokenize", {"messages": chat["messages"]}, 200),
            ("post", "/detokenize", {"tokens": [104, 105]}, 200),
            ("get", "/v1/models", None, 200),
            ("get", "/v1/models/{name}", None, 200),
            ("get", "/health", None, 200),
        ]
        for method, path, body, status in calls:
            url = address + path.replace("{name}", service.name)
            answer = httpx.request(method, url, json=body, headers=headers, timeout=60)
            assert answer.status_code == status, path
            operation = described["paths"][path][method]
            schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), {**schema, "components": described["components"]})
            if status == 200 and body is not None:
                request = operation["requestBody"]["content"]["application/json"]["schema"]
                jsonschema.validate(body, {**request, "components": described["components"]})
        for path in ("/docs", "/"):
            answer = httpx.get(address + path)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert not re.search(
                r"""(?:src|href)\s*=\s*["']?https?:|url\(\s*["']?https?:""", answer.text
            )  # nothing remote


def test_the_description_is_that_of_the_running_server(model: LlamaForCausalLM) -> None:
    with serving(model, queue=6) as (service, address):
        described = httpx.get(f"{address}/openapi.json").json()
        body = described["components"]["schemas"]["CompletionRequest"]["properties"]
        assert body["model"] == {"enum": [service.name]} and body["n"]["anyOf"][0]["maximum"] == 6 + model.engine.batch
        ids = body["prompt"]["oneOf"][1]
        assert (ids["maxItems"], ids["items"]["maximum"]) == (model.engine.context - 1, model.engine.vocab_size - 1)
        assert described["paths"]["/v1/models"]["get"]["security"] == []
        asked = {"model": service.name, "prompt": "a", "n": None, "unknown": None}
        jsonschema.validate(
            asked, {"$ref": "#/components/schemas/CompletionRequest", "components": described["components"]}
        )
        assert httpx.post(f"{address}/v1/completions", json=asked, timeout=60).status_code == 200
