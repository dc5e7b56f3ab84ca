"""The description of the endpoint at /openapi.json, in OpenAPI 3.1. The request bodies come from request.py."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from .request import ChatRequest, CompletionRequest

TEXT, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
# path, method, needs the key, what it does, request body, response (a schema, or the media type of a text)
ENDPOINTS: tuple[tuple[str, str, bool, str, str | None, str], ...] = (
    ("/v1/chat/completions", "post", True, "Answer a list of messages", "ChatRequest", "ChatCompletion"),
    ("/v1/completions", "post", True, "Continue one or several prompts", "CompletionRequest", "Completion"),
    ("/v1/models", "get", True, "List the only model", None, "ModelList"),
    ("/v1/models/{name}", "get", True, "Describe the model", None, "Model"),
    ("/metrics", "get", True, "Prometheus metrics", None, "text/plain"),
    ("/health", "get", False, "Status, model, rows, running and waiting answers", None, "Health"),
    ("/openapi.json", "get", False, "This description", None, "Description"),
    ("/docs", "get", False, "This description as a page", None, "text/html"),
    ("/", "get", False, "The chat page", None, "text/html"),
)
ERRORS = {
    "400": "a header, a field or the body is not valid, or the prompt is too long",
    "401": "the API key is missing or wrong",
    "403": "the Host header has another name",
    "404": "unknown path, or another model name",
    "413": "the body is too large",
    "415": "the content type is not application/json",
    "429": "every row is taken and the queue is full",
    "500": "the model or the server failed",
    "503": "the server is shutting down",
}


def description(version: str) -> dict[str, Any]:
    """Return the OpenAPI document. `version`: of this package."""
    _, requests = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for path, method, key, summary, body, response in ENDPOINTS:
        paths.setdefault(path, {})[method] = _operation(path, key, summary, body, response)
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgellama", "version": version, "description": "OpenAI's HTTP API for one model."},
        "paths": paths,
        "components": {
            "schemas": {**requests["$defs"], **_responses()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, key: bool, summary: str, body: str | None, response: str) -> dict[str, Any]:
    content = {response: {"schema": TEXT}} if "/" in response else _json(response)
    if body is not None:
        content = {**content, "text/event-stream": {"schema": TEXT}}
    skipped = set() if body is not None else {"413", "415", "429"}
    errors = {
        status: {"description": text, "content": _json("Error")}
        for status, text in ERRORS.items()
        if status not in skipped and (key or status != "401")
    }
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "the answer", "content": content}, **errors},
        "security": [{"key": []}, {}] if key else [],  # {}: a server without a key accepts every request
    }
    if path == "/health":
        operation["responses"]["503"]["content"] = _json("Health")
    if "{name}" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    return operation


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _responses() -> dict[str, Any]:
    """The schemas of the responses. Every property is always present."""
    nullable = {"type": ["string", "null"]}
    usage = _object(
        prompt_tokens=INTEGER,
        completion_tokens=INTEGER,
        total_tokens=INTEGER,
        prompt_tokens_details=_object(cached_tokens=INTEGER),
    )
    choice = {"index": INTEGER, "logprobs": {"type": ["object", "null"]}, "finish_reason": {"enum": ["stop", "length"]}}
    message = _object(role={"const": "assistant"}, content=TEXT, refusal=nullable)
    common = {"id": TEXT, "created": INTEGER, "model": TEXT, "usage": usage}
    model = _object(
        id=TEXT, object={"const": "model"}, created=INTEGER, owned_by=TEXT, root=TEXT, max_model_len=INTEGER
    )
    return {
        "ChatCompletion": _object(
            **common,
            object={"const": "chat.completion"},
            choices={"type": "array", "items": _object(**choice, message=message)},
        ),
        "Completion": _object(
            **common,
            object={"const": "text_completion"},
            choices={"type": "array", "items": _object(**choice, text=TEXT)},
        ),
        "Model": model,
        "ModelList": _object(
            object={"const": "list"}, data={"type": "array", "items": {"$ref": "#/components/schemas/Model"}}
        ),
        "Health": _object(
            status={"enum": ["ok", "closing"]}, model=TEXT, rows=INTEGER, running=INTEGER, waiting=INTEGER
        ),
        "Description": {"type": "object"},
        "Error": _object(error=_object(message=TEXT, type=TEXT, param=nullable, code=nullable)),
    }
