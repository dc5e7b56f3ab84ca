"""HTTP: routes, who may ask, what a body may be, and how errors are told. Starlette, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from runtime.errors import UserError
from runtime.model import LlamaForCausalLM
from runtime.serve import schema
from runtime.serve.answer import Answer, Event
from runtime.serve.errors import ApiError, from_validation
from runtime.serve.metrics import Metrics
from runtime.serve.prepare import Preparer
from runtime.serve.responses import Writer, encoded
from runtime.serve.scheduler import Busy, Closed, Scheduler
from runtime.serve.stream import Disconnected, EventStream, Item, Outbox, Running

MAX_BODY = 8 << 20  # bytes: several times the text that a context of 128k tokens holds
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Endpoint = Callable[[Request], Awaitable[Response]]

log = logging.getLogger(__name__)


class Service:
    """The application and what it serves: `app` for an ASGI server, `scheduler` for whoever shuts it down."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        *,
        queue: int,
        api_key: str | None = None,
        hosts: Collection[str] | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        """queue: answers that may wait for a row. api_key: what requests must bear. hosts: the names under which
        requests may come, any when None: a page of another site cannot reach a server on loopback by a name of its own.
        """
        self.model = model
        self.name = model.artifact.manifest.name
        self._created = int(model.artifact.file("manifest.json").stat().st_mtime)
        self.outbox = Outbox()
        self.scheduler = Scheduler(model.engine, queue=queue, after_pass=self.outbox.flush)
        self.metrics = Metrics(self.scheduler)
        self._preparer = Preparer(model, queue + model.engine.batch)
        self._api_key = api_key
        self._hosts = hosts
        self._max_body = max_body
        chat = partial(self._complete, schema.ChatRequest)
        text = partial(self._complete, schema.CompletionRequest)
        self.app = Starlette(
            routes=[
                Route("/", self._guarded("/", self._page, public=True)),
                Route("/health", self._guarded("/health", self._health, public=True)),
                Route("/metrics", self._guarded("/metrics", self._metrics)),
                Route("/v1/models", self._guarded("/v1/models", self._models)),
                Route("/v1/models/{name:path}", self._guarded("/v1/models", self._model)),
                Route("/v1/completions", self._guarded("/v1/completions", text), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded("/v1/chat/completions", chat), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.outbox.loop = asyncio.get_running_loop()
        self.scheduler.start()
        try:
            yield
        finally:
            await run_in_threadpool(self.scheduler.close)

    def _guarded(self, name: str, endpoint: Endpoint, public: bool = False) -> Endpoint:
        """The endpoint, for those who may ask; what it raises as a response."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_host(request)
                if not public:
                    self._check_key(request)
                response = await endpoint(request)
            except ApiError as error:
                response = JSONResponse(error.body, error.status, error.headers)
            except UserError as error:
                response = JSONResponse(ApiError(400, str(error)).body, 400)
            except (ClientDisconnect, Disconnected):
                response = Response(status_code=499)  # nobody reads it
            except Exception:
                log.exception("%s failed", name)
                response = JSONResponse(ApiError(500, "the server failed; its log says why").body, 500)
            self.metrics.requests.labels(name, str(response.status_code)).inc()
            return response

        return guarded

    def _check_host(self, request: Request) -> None:
        host = urlsplit("//" + request.headers.get("host", "")).hostname
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(403, f"this server is not {host!r}. It answers to {', '.join(sorted(self._hosts))}")

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secrets.compare_digest(
            key.strip().encode("latin-1"), self._api_key.encode()
        ):
            raise ApiError(
                401,
                "no or another API key; needed: the server's, as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _page(self, _: Request) -> Response:
        page = resources.files("runtime.serve").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers={"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"})

    async def _health(self, _: Request) -> Response:
        alive = self.scheduler.alive
        state = {"status": "ok" if alive else "closing", "model": self.name, "rows": self.model.engine.batch}
        counts = {"running": self.scheduler.running, "waiting": self.scheduler.waiting}
        return JSONResponse({**state, **counts}, 200 if alive else 503)

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about()]})

    async def _model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._about())

    def _about(self) -> dict[str, object]:
        source = self.model.artifact.manifest.source.model
        context = self.model.engine.context
        known = {"id": self.name, "object": "model", "created": self._created, "owned_by": "edgellama"}
        return {**known, "root": source, "max_model_len": context}

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404, f"no model {name!r} here; this server has {self.name!r}", param="model", code="model_not_found"
            )

    async def _complete(self, kind: type[schema.Request], request: Request) -> Response:
        began = time.perf_counter()
        body = await self._body(request)
        queue: asyncio.Queue[Item] = asyncio.Queue()
        asked, answers = await run_in_threadpool(self._prepared, kind, body, partial(self.outbox.send, queue))
        try:
            self.scheduler.submit(answers)
        except Busy:
            raise ApiError(429, "every row is taken and the queue is full", headers={"retry-after": "1"}) from None
        except Closed:
            raise ApiError(503, "the server is shutting down", headers={"retry-after": "10"}) from None
        writer = Writer(asked, self.name, self.model.tokenizer)
        running = Running(answers, queue, writer, self.scheduler.cancel, self.metrics, began)
        if asked.stream:
            return EventStream(running)
        return Response(await running.whole(request.receive), media_type="application/json")

    def _prepared(
        self, kind: type[schema.Request], body: bytes, send: Callable[[int, Event], None]
    ) -> tuple[schema.Request, list[Answer]]:
        """What a body asks for, and its answers. Not for the event loop: a large body takes a second."""
        try:
            asked = kind.model_validate_json(body, context=self._preparer.limits)
        except ValidationError as error:
            raise from_validation(error) from error
        self._check_name(asked.model)
        return asked, self._preparer.answers(asked, send)

    async def _body(self, request: Request) -> bytes:
        """The body, if it is declared as JSON (what no page of another site can send unasked) and not too large."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body's type is not JSON; needed: Content-Type: application/json")
        too_large = ApiError(413, f"the body has more than {self._max_body:,} bytes, the most that this server takes")
        if int(request.headers.get("content-length") or 0) > self._max_body:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body:
                raise too_large
        return bytes(body)


async def _http_error(_: Request, error: Exception) -> Response:
    """No such path, or another method than it takes."""
    if not isinstance(error, HTTPException):
        raise error
    return Response(
        encoded(ApiError(error.status_code, error.detail).body),
        error.status_code,
        error.headers,
        media_type="application/json",
    )
