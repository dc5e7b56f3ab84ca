"""The description of the endpoint at /openapi.json, in OpenAPI 3.1. The request bodies come from request.py.

It describes the running server: its model, its limits, and whether it has a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from .fields.base import RequestLimits
from .fields.embeddings import MAX_INPUTS, EmbeddingsRequest
from .fields.messages import EMPTY_MESSAGE_FIELDS, TEMPLATE_ARGUMENTS
from .fields.tokenization import DetokenizeRequest, TokenizeRequest
from .fields.tools import MAX_TOOLS
from .request import LOGIT_BIAS, MAX_ID_DIGITS, ChatRequest, CompletionRequest
from .responses_api.request import ResponsesRequest

TEXT, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
NULL, NULLABLE = {"type": "null"}, {"type": ["string", "null"]}
JSON_CONTENT = {"contentMediaType": "application/json"}
# path, method, needs the key, what it does, request body, response (a schema, or the media type of a text)
ENDPOINTS: tuple[tuple[str, str, bool, str, str | None, str], ...] = (
    ("/v1/chat/completions", "post", True, "Answer a list of messages", "ChatRequest", "ChatCompletion"),
    ("/v1/completions", "post", True, "Continue one or several prompts", "CompletionRequest", "Completion"),
    ("/v1/responses", "post", True, "Answer a conversation, in OpenAI's newer form", "ResponsesRequest", "Response"),
    ("/v1/embeddings", "post", True, "Embeddings of one or several texts", "EmbeddingsRequest", "Embeddings"),
    ("/tokenize", "post", True, "Token ids of a text or of messages", "TokenizeRequest", "Tokens"),
    ("/detokenize", "post", True, "Text of token ids", "DetokenizeRequest", "Text"),
    ("/v1/models", "get", True, "List the model, once for each of its names", None, "ModelList"),
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
    "408": "the request did not arrive in time",
    "413": "the body is too large",
    "415": "the content type is not application/json",
    "429": "every row is taken and the queue is full",
    "431": "the URL and the headers are too long",
    "500": "the model or the server failed",
    "503": "the server is shutting down, or has too many connections or large requests",
}
ERROR_HEADERS = {"401": ("www-authenticate",), "429": ("retry-after",), "503": ("retry-after",)}
STREAMED = ("ChatCompletionChunk", "CompletionChunk", "ResponseChunk")
STREAM = "one of the server-sent events, if the request has `stream: true`. An Error ends the stream without [DONE]"


REQUESTS = (
    *(ChatRequest, CompletionRequest, ResponsesRequest),
    *(EmbeddingsRequest, TokenizeRequest, DetokenizeRequest),
)


@dataclass(frozen=True)
class Described:
    """What the description says about a running server.

    Attributes:
        version: of this package.
        models: names of the model.
        limits: of requests.
        vocab_size: number of token ids.
        hidden_size: length of an embedding.
        takes_empty_text: whether the tokenizer makes a token of an empty text.
        has_key: whether requests need a key.
        has_tools: whether the chat template has tools.
    """

    version: str
    models: tuple[str, ...]
    limits: RequestLimits
    vocab_size: int
    hidden_size: int
    takes_empty_text: bool
    has_key: bool
    has_tools: bool


def description(server: Described) -> dict[str, Any]:
    """Return the OpenAPI document."""
    paths: dict[str, Any] = {}
    for path, method, key, summary, body, response in ENDPOINTS:
        paths.setdefault(path, {})[method] = _operation(path, key and server.has_key, summary, body, response)
    paths["/v1/models/{name}"]["get"]["parameters"] = [
        {"name": "name", "in": "path", "required": True, "schema": TEXT, "example": server.models[0]}
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgellama", "version": server.version, "description": "OpenAI's HTTP API for one model."},
        "paths": paths,
        "components": {
            "schemas": {**_requests(server), **_responses()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, key: bool, summary: str, body: str | None, response: str) -> dict[str, Any]:
    content: dict[str, Any] = {response: {"schema": TEXT}} if "/" in response else _json(response)
    answer: dict[str, Any] = {"description": "the answer", "content": content}
    if body is not None and response + "Chunk" in STREAMED:
        chunk = {"anyOf": [_reference(response + "Chunk"), _reference("Error")]}
        data = {"anyOf": [{"const": "[DONE]"}, {**TEXT, **JSON_CONTENT, "contentSchema": chunk}]}
        content["text/event-stream"] = {"schema": {**_object(data=data), "description": STREAM}}
    if response == "text/html":
        answer["headers"] = _headers("content-security-policy", "cache-control")
    skipped = set() if body is not None else {"413", "415", "429"}
    errors = {
        status: {"description": text, "content": _json("Error"), "headers": _headers(*ERROR_HEADERS.get(status, ()))}
        for status, text in ERRORS.items()
        if status not in skipped and (key or status != "401")
    }
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": answer, **errors},
        "security": [{"key": []}] if key else [],
    }
    if path == "/health":
        schemas = [_json(name)["application/json"]["schema"] for name in ("Health", "Error")]
        operation["responses"]["503"]["content"] = {"application/json": {"schema": {"anyOf": schemas}}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    return operation


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(schema)}}


def _reference(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"required": True, "schema": INTEGER if name == "retry-after" else TEXT} for name in names}


def _requests(server: Described) -> dict[str, Any]:
    """The schemas of the bodies: pydantic's, and what its validators check besides."""
    _, made = models_json_schema(
        [(kind, "validation") for kind in REQUESTS],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = made["$defs"]
    for name in ("ChatRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        fields["model"] = {"enum": list(server.models)}
        fields["n"]["maximum"] = min(fields["n"]["maximum"], server.limits.sequences)
        fields["logit_bias"] = {
            "type": "object",
            "propertyNames": {"pattern": f"^[0-9]{{1,{MAX_ID_DIGITS}}}$"},
            "additionalProperties": {"type": "number", "minimum": -LOGIT_BIAS, "maximum": LOGIT_BIAS},
            "default": {},
            "description": "by token id",
        }
    chat, message = schemas["ChatRequest"], schemas["ChatMessage"]
    chat["properties"]["messages"]["maxItems"] = server.limits.context - 1
    chat["properties"]["chat_template_kwargs"]["propertyNames"] = {"not": {"enum": list(TEMPLATE_ARGUMENTS)}}
    chat["anyOf"] = [
        {"properties": {"top_logprobs": NULL}},
        {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
    ]
    empty: dict[str, Any] = {"enum": [None, False, 0, "", [], {}]}
    for name in EMPTY_MESSAGE_FIELDS:
        field = message["properties"].get(name) if server.has_tools or name != "tool_calls" else None
        message["properties"][name] = (
            {**empty, "description": "ignored"} if field is None else {"anyOf": [field, empty]}
        )
    for fields in (chat["properties"], schemas["TokenizeRequest"]["properties"]):
        fields["tools"]["maxItems"] = MAX_TOOLS if server.has_tools else 0
    for name in ("FunctionTool", "ResponsesTool"):
        schemas[name]["properties"]["parameters"]["properties"] = {
            "type": {"const": "object"},
            "properties": {"type": "object"},
            "required": {"type": "array", "items": TEXT},
        }
    text, ids, texts, lists = schemas["CompletionRequest"]["properties"]["prompt"]["oneOf"]
    for tokens in (ids, lists["items"]):
        tokens["maxItems"] = server.limits.context - 1
        tokens["items"] = {"type": "integer", "minimum": 0, "maximum": server.vocab_size - 1}
    if not server.takes_empty_text:
        text["minLength"] = texts["items"]["minLength"] = 1
    for several in (texts, lists):
        several |= {"minItems": 1, "maxItems": server.limits.sequences}
    schemas["CompletionRequest"]["properties"]["best_of"]["description"] = "the value of n"
    schemas["CompletionRequest"]["properties"]["suffix"]["const"] = ""
    _describe_tokenization(schemas, server)
    _describe_responses(schemas, server)
    _describe_embeddings(schemas, server)
    schemas["ResponseFormat"]["anyOf"] = [
        {"properties": {"type": {"enum": ["text", "json_object"]}, "json_schema": NULL}},
        {
            "properties": {"type": {"const": "json_schema"}, "json_schema": {"type": "object"}},
            "required": ["json_schema"],
        },
    ]
    for schema in schemas.values():
        _allow_null(schema)
    return schemas


def _describe_responses(schemas: dict[str, Any], server: Described) -> None:
    fields = schemas["ResponsesRequest"]["properties"]
    fields["model"] = {"enum": list(server.models)}
    fields["tools"]["maxItems"] = MAX_TOOLS if server.has_tools else 0
    fields["chat_template_kwargs"]["propertyNames"] = {"not": {"enum": list(TEMPLATE_ARGUMENTS)}}
    fields["background"]["const"] = False
    schemas["TextFormat"]["anyOf"] = [
        {"properties": {"type": {"enum": ["text", "json_object"]}, "schema": NULL}},
        {"properties": {"type": {"const": "json_schema"}, "schema": {"type": "object"}}, "required": ["schema"]},
    ]


def _describe_embeddings(schemas: dict[str, Any], server: Described) -> None:
    fields = schemas["EmbeddingsRequest"]["properties"]
    fields["model"] = {"enum": list(server.models)}
    fields["dimensions"] = {"const": server.hidden_size}
    text, ids, texts, lists = fields["input"]["oneOf"]
    for tokens in (ids, lists["items"]):
        tokens["maxItems"] = server.limits.context
        tokens["items"] = {"type": "integer", "minimum": 0, "maximum": server.vocab_size - 1}
    if not server.takes_empty_text:
        text["minLength"] = texts["items"]["minLength"] = 1
    for several in (texts, lists):
        several |= {"minItems": 1, "maxItems": MAX_INPUTS}


def _describe_tokenization(schemas: dict[str, Any], server: Described) -> None:
    tokens, text = schemas["TokenizeRequest"], schemas["DetokenizeRequest"]
    for schema in (tokens, text):
        schema["properties"]["model"] = {"enum": list(server.models)}
    fields = tokens["properties"]
    fields["prompt"], fields["messages"] = (fields[name]["anyOf"][0] for name in ("prompt", "messages"))
    fields["messages"]["maxItems"] = server.limits.context - 1
    fields["chat_template_kwargs"]["propertyNames"] = {"not": {"enum": list(TEMPLATE_ARGUMENTS)}}
    tokens["oneOf"] = [
        {"properties": {one: {"not": NULL}, other: NULL}, "required": [one]}
        for one, other in (("prompt", "messages"), ("messages", "prompt"))
    ]
    text["properties"]["tokens"]["items"] = {"type": "integer", "minimum": 0, "maximum": server.vocab_size - 1}


def _allow_null(schema: dict[str, Any]) -> None:
    """A null field counts as absent, whether it is known or not."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        if name not in required and NULL not in field.get("anyOf", ()):
            kept = {key: field.pop(key) for key in ("default", "title", "description") if key in field}
            schema["properties"][name] = {"anyOf": [field, NULL], **kept}
    schema["additionalProperties"] = NULL


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, NULL]}


def _responses() -> dict[str, Any]:
    """The schemas of the responses. Every property is always present, except those of a chunk's `delta`."""
    usage = _object(
        prompt_tokens=INTEGER,
        completion_tokens=INTEGER,
        total_tokens=INTEGER,
        completion_tokens_details=_object(accepted_prediction_tokens=INTEGER, rejected_prediction_tokens=INTEGER),
        prompt_tokens_details=_object(cached_tokens=INTEGER),
    )
    reason = {"enum": ["stop", "length", "tool_calls"]}
    head = {"id": TEXT, "created": INTEGER, "model": TEXT}
    chat_logprobs, logprobs = _or_null(_reference("ChatLogprobs")), _or_null(_reference("CompletionLogprobs"))
    function = {"name": TEXT, "arguments": TEXT}
    call = _object(id=TEXT, type={"const": "function"}, function=_object(**function))
    message = _object(role={"const": "assistant"}, content=NULLABLE, refusal=NULL)
    message["properties"] |= {"reasoning_content": TEXT, "tool_calls": _list(call)}
    token = {"token": TEXT, "logprob": NUMBER, "bytes": _list({"type": "integer", "minimum": 0, "maximum": 255})}
    choice = {"index": INTEGER, "finish_reason": reason}
    chunk = {"index": INTEGER, "finish_reason": _or_null(reason)}
    part: dict[str, Any] = {"index": INTEGER, "id": TEXT, "type": {"const": "function"}}
    part["function"] = {"type": "object", "properties": function, "required": ["arguments"]}
    calls = _list({"type": "object", "properties": part, "required": ["index", "function"]})
    texts = {"role": {"const": "assistant"}, "content": TEXT, "reasoning_content": TEXT}
    delta = {"type": "object", "properties": {**texts, "tool_calls": calls}}
    model = _object(
        id=TEXT, object={"const": "model"}, created=INTEGER, owned_by=TEXT, root=TEXT, max_model_len=INTEGER
    )
    schemas = {
        "ChatLogprobs": _object(content=_list(_object(**token, top_logprobs=_list(_object(**token)))), refusal=NULL),
        "CompletionLogprobs": _object(
            tokens=_list(TEXT),
            token_logprobs=_list(_or_null(NUMBER)),  # null: the first token of an echoed prompt
            top_logprobs=_list(_or_null({"type": "object", "additionalProperties": NUMBER})),
            text_offset=_list(INTEGER),
        ),
        "ChatCompletion": _object(
            **head,
            usage=usage,
            object={"const": "chat.completion"},
            choices=_list(_object(**choice, message=message, logprobs=chat_logprobs)),
        ),
        "Completion": _object(
            **head,
            usage=usage,
            object={"const": "text_completion"},
            choices=_list(_object(**choice, text=TEXT, logprobs=logprobs)),
        ),
        "ChatCompletionChunk": _object(
            **head,
            object={"const": "chat.completion.chunk"},
            choices=_list(_object(**chunk, delta=delta, logprobs=chat_logprobs)),
        ),
        "CompletionChunk": _object(
            **head,
            object={"const": "text_completion"},
            choices=_list(_object(**chunk, text=TEXT, logprobs=logprobs)),
        ),
        "Response": _object(
            id=TEXT,
            object={"const": "response"},
            created_at=INTEGER,
            model=TEXT,
            status={"enum": ["completed", "incomplete"]},
            incomplete_details=_or_null(_object(reason={"const": "max_output_tokens"})),
            output=_list(_object(type={"enum": ["reasoning", "message", "function_call"]}, id=TEXT, status=TEXT)),
            usage=_object(
                input_tokens=INTEGER,
                input_tokens_details=_object(cached_tokens=INTEGER),
                output_tokens=INTEGER,
                output_tokens_details=_object(reasoning_tokens=INTEGER),
                total_tokens=INTEGER,
            ),
        ),
        "ResponseChunk": _object(type=TEXT, sequence_number=INTEGER),
        "Embeddings": _object(
            object={"const": "list"},
            data=_list(
                _object(object={"const": "embedding"}, index=INTEGER, embedding={"anyOf": [_list(NUMBER), TEXT]})
            ),
            model=TEXT,
            usage=_object(prompt_tokens=INTEGER, total_tokens=INTEGER),
        ),
        "Tokens": _object(
            count=INTEGER, max_model_len=INTEGER, tokens=_list(INTEGER), token_strs=_or_null(_list(TEXT))
        ),
        "Text": _object(prompt=TEXT),
        "Model": model,
        "ModelList": _object(object={"const": "list"}, data=_list(_reference("Model"))),
        "Health": _object(
            status={"enum": ["ok", "closing"]}, model=TEXT, rows=INTEGER, running=INTEGER, waiting=INTEGER
        ),
        "Description": {"type": "object"},
        "Error": _object(error=_object(message=TEXT, type=TEXT, param=NULLABLE, code=NULLABLE)),
    }
    for name in ("ChatCompletionChunk", "CompletionChunk"):
        schemas[name]["properties"]["usage"] = _or_null(usage)  # with stream_options.include_usage
    return schemas
