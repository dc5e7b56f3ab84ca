"""HTTP with Starlette: routes, access checks and errors, in OpenAI's formats."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..errors import UserError, shown
from ..generation.scoring import POOLINGS
from ..model import LlamaForCausalLM
from .access import cross_origin, host_name
from .answers.form import can_call_tools
from .bodies import MAX_BODY, BodyReader, Validated
from .errors import ApiError, shortened
from .event_stream import ActiveRequest, DisconnectedError, EventStreamResponse, Item, Outbox
from .fields.embeddings import EmbeddingsRequest
from .fields.tokenization import DetokenizeRequest, TokenizeRequest
from .metrics import Metrics
from .openapi import Described, description
from .preprocess import SAMPLING_DEFAULTS, Preprocessor
from .request import HINTS, ChatRequest, CompletionRequest, GenerationRequest
from .responses import ResponseWriter, to_json
from .responses_api.request import ResponsesRequest
from .responses_api.writer import ResponseObjectWriter
from .scheduler import QueueFullError, Scheduler, SchedulerClosedError
from .sequence import SequenceEvent, ServedSequence
from .texts.embeddings import Embedder
from .texts.tokenization import detokenize, tokenize

SLOW_THREADS = 4  # that prepare requests with chat templates and grammars
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Endpoint = Callable[[Request], Awaitable[Response]]

log = logging.getLogger(__name__)


class Service:
    """A model as an ASGI application.

    Attributes:
        app: the application, for an ASGI server
        scheduler: runs the sequences; close it to shut down
        name: the model's name
        names: accepted in requests: `name`, the aliases, and the names of the model's LoRA adapters
        metrics: what /metrics shows
        bodies: reads requests
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        *,
        queue: int,
        api_key: str | None = None,
        hosts: Collection[str] | None = None,
        max_body: int = MAX_BODY,
        sampling: str = SAMPLING_DEFAULTS[0],
        tool_parser: str | None = None,
        aliases: Sequence[str] = (),
        origins: Sequence[str] = (),
        pooling: str = POOLINGS[0],
        cache_memory: int = 0,
        prompt_lookup: int = 0,
    ) -> None:
        """Args:
        model: a loaded model; the service runs its engine, and offers the adapters that it has loaded as models
        queue: answers that may wait for a row
        api_key: the bearer token that requests must have; None accepts every request
        hosts: accepted names in the Host header; None accepts every name. A list protects a server on loopback from
            pages of other sites, which can make their name resolve to loopback (DNS rebinding)
        max_body: largest request body, in bytes
        sampling: settings of a request without sampling fields; one of SAMPLING_DEFAULTS
        tool_parser: name of the syntax of tool calls; None takes that of the chat template
        aliases: further names of the model
        origins: of web pages that may read answers, such as https://chat.example; "*" permits all
        prompt_lookup: as in Scheduler
        pooling: of embeddings whose request names none; one of POOLINGS
        cache_memory: bytes for the keys and values of conversations that no row holds
        """
        self.model = model
        has_tokenizer = model.artifact.file("tokenizer.json").is_file()
        if has_tokenizer:
            model.tokenizer  # noqa: B018 - a chat template that cannot be compiled is refused at the start
        self.name = model.artifact.manifest.name
        adapters = model.engine.adapters.loaded
        if taken := sorted({self.name, *aliases} & adapters.keys()):
            raise UserError(f"{shown(taken[0])} is a name of the model and of an adapter. Give the adapter another one")
        self.names = tuple(dict.fromkeys((self.name, *aliases, *adapters)))
        self._created = int(model.artifact.file("manifest.json").stat().st_mtime)
        self.outbox = Outbox()
        self.scheduler = Scheduler(
            model.engine,
            **{"queue": queue, "cache_memory": cache_memory, "prompt_lookup": prompt_lookup},
            after_pass=self.outbox.flush,
        )
        self.metrics = Metrics(self.scheduler)
        self._preprocessor = Preprocessor(model, queue + model.engine.batch, sampling, tool_parser)
        # read once: later there may be no descriptor
        self._html = {"page/page.html": _html("page/page.html"), "docs.html": _html("docs.html")}
        self._description = description(
            Described(
                __version__,
                self.names,
                self._preprocessor.limits,
                model.engine.vocab_size,
                int(model.artifact.manifest.config.get("hidden_size", 0)),
                takes_empty_text=has_tokenizer and bool(model.tokenizer.encode("")),
                has_key=api_key is not None,
                has_tools=has_tokenizer and can_call_tools(model.tokenizer, tool_parser),
            )
        )
        self._logged_hints: set[str] = set()
        self.bodies = BodyReader(self._preprocessor.limits, self._check_name, max_body)
        self._embedder = Embedder(model, self.scheduler, self.outbox, pooling)
        self._api_key = api_key
        self._hosts = hosts
        chat = partial(self._complete, ChatRequest)
        completion = partial(self._complete, CompletionRequest)
        response = partial(self._complete, ResponsesRequest)
        tokens = partial(self._convert, TokenizeRequest, tokenize)
        text = partial(self._convert, DetokenizeRequest, detokenize)
        self.app = Starlette(
            routes=[
                Route("/", self._guarded("/", self._page, public=True)),
                Route("/docs", self._guarded("/docs", self._docs, public=True)),
                Route("/openapi.json", self._guarded("/openapi.json", self._openapi, public=True)),
                Route("/health", self._guarded("/health", self._health, public=True)),
                Route("/metrics", self._guarded("/metrics", self._metrics)),
                Route("/v1/models", self._guarded("/v1/models", self._models)),
                Route("/v1/models/{name:path}", self._guarded("/v1/models", self._model)),
                Route("/tokenize", self._guarded("/tokenize", tokens), methods=["POST"]),
                Route("/detokenize", self._guarded("/detokenize", text), methods=["POST"]),
                Route("/v1/completions", self._guarded("/v1/completions", completion), methods=["POST"]),
                Route("/v1/embeddings", self._guarded("/v1/embeddings", self._embed), methods=["POST"]),
                Route("/v1/responses", self._guarded("/v1/responses", response), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded("/v1/chat/completions", chat), methods=["POST"]),
            ],
            middleware=[cross_origin(origins)] if origins else [],
            exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
            lifespan=self._lifespan,
        )
        self.app.router.redirect_slashes = False  # the target would have the name of the Host header

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.outbox.loop = asyncio.get_running_loop()
        self._slow_threads = CapacityLimiter(SLOW_THREADS)
        self.scheduler.start()
        try:
            yield
        finally:
            await run_in_threadpool(self.scheduler.close)

    def _guarded(self, name: str, endpoint: Endpoint, public: bool = False) -> Endpoint:
        """The endpoint with access checks. Turns exceptions into responses and counts the request.

        Args:
            public: whether the endpoint needs no API key.
        """

        async def guarded(request: Request) -> Response:
            try:
                self._check_host(request)
                if not public:
                    self._check_key(request)
                response = await endpoint(request)
            except ApiError as error:
                response = JSONResponse(error.body, error.status, error.headers)
            except QueueFullError:
                full = ApiError(429, "every row is taken and the queue is full. Try again")
                response = JSONResponse(full.body, 429, {"retry-after": "1"})
            except SchedulerClosedError:
                closing = ApiError(503, "the server is shutting down. Try again later")
                response = JSONResponse(closing.body, 503, {"retry-after": "10"})
            except UserError as error:
                response = JSONResponse(ApiError(400, str(error)).body, 400)
            except (ClientDisconnect, DisconnectedError):
                response = Response(status_code=499)  # only for the metrics: the client has gone
            except Exception:
                log.exception("%s failed", name)
                response = JSONResponse(_server_error().body, 500)
            self.metrics.requests.labels(name, str(response.status_code)).inc()
            return response

        return guarded

    def _check_host(self, request: Request) -> None:
        host = host_name(request.headers.getlist("host"))
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(
                403, f"this server's name is not {shortened(repr(host))}. Use {', '.join(sorted(self._hosts))}"
            )

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secrets.compare_digest(
            key.strip().encode("latin-1"), self._api_key.encode()
        ):
            raise ApiError(
                401,
                "the API key is missing or wrong. Send Authorization: Bearer KEY, with the server's key",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _page(self, _: Request) -> Response:
        return self._html_response("page/page.html")

    async def _docs(self, _: Request) -> Response:
        return self._html_response("docs.html")

    def _html_response(self, name: str) -> Response:
        headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        return HTMLResponse(self._html[name], headers=headers)

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(self._description)

    async def _health(self, _: Request) -> Response:
        alive = self.scheduler.alive
        state = {"status": "ok" if alive else "closing", "model": self.name, "rows": self.model.engine.batch}
        counts = {"running": self.scheduler.running, "waiting": self.scheduler.waiting}
        return JSONResponse({**state, **counts}, 200 if alive else 503, None if alive else {"retry-after": "10"})

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_object(name) for name in self.names]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"].removesuffix("/")
        if not name:  # some clients end the path of the list with a slash
            return await self._models(request)
        self._check_name(name)
        return JSONResponse(self._model_object(name))

    def _model_object(self, name: str) -> dict[str, object]:
        source = self.model.artifact.manifest.source.model
        context = self.model.engine.context
        common = {"id": name, "object": "model", "created": self._created, "owned_by": "edgellama"}
        return {**common, "root": source, "max_model_len": context}

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            known = " or ".join(map(repr, self.names))
            raise ApiError(
                404, f"no model {shortened(repr(name))} here. Use {known}", param="model", code="model_not_found"
            )

    async def _convert(
        self, kind: type[Validated], work: Callable[[LlamaForCausalLM, Validated], object], http_request: Request
    ) -> Response:
        """Answer /tokenize or /detokenize: `work` takes the model and the request."""
        request = await self.bodies.request(kind, http_request)
        return Response(
            to_json(await to_thread.run_sync(work, self.model, request, limiter=self._slow_threads)),
            media_type="application/json",
        )

    async def _embed(self, http_request: Request) -> Response:
        request = await self.bodies.request(EmbeddingsRequest, http_request)
        answer = await self._embedder.answer(request, http_request.receive, self._slow_threads)
        return Response(await to_thread.run_sync(to_json, answer), media_type="application/json")

    async def _complete(self, kind: type[GenerationRequest | ResponsesRequest], http_request: Request) -> Response:
        start = time.perf_counter()
        body = await self.bodies.request(kind, http_request)
        request = body.chat if isinstance(body, ResponsesRequest) else body
        queue: asyncio.Queue[Item] = asyncio.Queue()
        reserved = self._preprocessor.count(request)
        self.scheduler.reserve(reserved)  # before the preparation takes time and memory
        try:
            sequences = await self._prepare(request, partial(self.outbox.send, queue))
            self.scheduler.submit(sequences, reserved=reserved)
            reserved = 0
        finally:
            self.scheduler.release(reserved)
        self._log_hints(request)
        readers = [sequence.reader for sequence in sequences]
        tokenizer = self.model.tokenizer
        writer: ResponseWriter | ResponseObjectWriter
        if isinstance(body, ResponsesRequest):
            writer = ResponseObjectWriter(body, tokenizer, readers[0])
        else:
            writer = ResponseWriter(request, request.model, tokenizer, readers)
        active = ActiveRequest(sequences, queue, writer, self.scheduler.cancel, self.metrics, start)
        if request.stream:
            return EventStreamResponse(active)
        return Response(await active.complete(http_request.receive), media_type="application/json")

    def _log_hints(self, request: GenerationRequest) -> None:
        """Log each field that is accepted without effect, once."""
        for name in request.model_fields_set.intersection(HINTS) - self._logged_hints:
            self._logged_hints.add(name)
            log.warning("%s has no effect here; requests with it are answered without it", name)

    async def _prepare(
        self, request: GenerationRequest, send: Callable[[int, SequenceEvent], None]
    ) -> list[ServedSequence]:
        """Make the sequences of a request outside the event loop.

        A template or a grammar of a stranger may take seconds. So few threads work on them, and others are free.
        """
        slow = isinstance(request, ChatRequest) or request.response_format.type != "text"
        return await to_thread.run_sync(
            self._preprocessor.sequences, request, send, limiter=self._slow_threads if slow else None
        )


def _html(name: str) -> str:
    """Read a page, with the content of the files beside it whose names it has in {{ }}."""
    folder = resources.files("edgellama.serve")
    page = folder.joinpath(name).read_text(encoding="utf-8")
    return re.sub(
        r"\{\{([\w.-]+)\}\}", lambda found: folder.joinpath("page").joinpath(found[1]).read_text(encoding="utf-8"), page
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """The response for an unknown path or a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    message, path = error.detail, request.scope["path"][:100]
    if error.status_code == 404:
        message = f"no path {path!r} here. Use one that /docs lists"
    elif error.status_code == 405:
        message = f"the path {path!r} has no method {request.method}. Use one that /docs lists"
    return JSONResponse(ApiError(error.status_code, message).body, error.status_code, error.headers)


async def _unexpected_error(_: Request, error: Exception) -> Response:
    """The response for an error outside of the endpoints. Starlette raises it again, which logs it."""
    return JSONResponse(_server_error().body, 500)


def _server_error() -> ApiError:
    return ApiError(500, "the server failed; its log has the reason")
