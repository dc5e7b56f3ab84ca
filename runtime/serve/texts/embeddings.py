"""POST /v1/embeddings: pooled hidden states of texts, computed between the passes of other requests."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Any

import numpy as np
from anyio import CapacityLimiter, to_thread
from starlette.types import Receive

from ...backend.cpu_head import CpuHead
from ...errors import LogitsError
from ...generation.config import GenerationConfig
from ...model import LlamaForCausalLM
from ..errors import ApiError
from ..event_stream import AnswerEvents, Item, Outbox
from ..fields.embeddings import EmbeddingsRequest, too_long
from ..scheduler import QueueFullError, Scheduler
from ..sequence import ServedSequence

RETRY_SECONDS = 0.05  # while the queue is full


class PooledStates:
    """Reads the hidden states of a text, chunk by chunk, and keeps what the pooling needs."""

    def __init__(self, pooling: str) -> None:
        """pooling: one of generation.scoring.POOLINGS."""
        self._pooling = pooling
        self._sum: np.ndarray | None = None  # [hidden_size] float64; of one state unless the pooling is "mean"
        self._count = 0

    def read(self, head: CpuHead, states: np.ndarray) -> None:
        """Take the states [n, hidden_size] of the next tokens. Raises LogitsError if they are not numbers."""
        if self._pooling == "cls" and self._count:
            return
        kept = {"last": states[-1:], "mean": states, "cls": states[:1]}[self._pooling]
        found = head.normalised(kept).sum(axis=0, dtype=np.float64)
        if not np.isfinite(found).all():
            raise LogitsError("hidden states are not numbers. Compare the artifact's files with `edgellama check`")
        if self._pooling == "mean" and self._sum is not None:
            self._sum += found
        else:
            self._sum, self._count = found, 0
        self._count += len(kept)

    def embedding(self) -> np.ndarray:
        """The embedding, float32 [hidden_size], of Euclidean norm 1."""
        if self._sum is None:
            raise RuntimeError("no states were read")
        mean = self._sum / self._count
        return (mean / max(float(np.linalg.norm(mean)), float(np.finfo(np.float32).tiny))).astype(np.float32)


class Embedder:
    """Answers requests for embeddings."""

    def __init__(self, model: LlamaForCausalLM, scheduler: Scheduler, outbox: Outbox, pooling: str) -> None:
        """Args:
        model: gives the tokenizer
        scheduler: runs the passes
        outbox: carries the events
        pooling: of requests that name none; one of generation.scoring.POOLINGS
        """
        self.pooling = pooling
        self._model, self._scheduler, self._outbox = model, scheduler, outbox

    async def answer(self, request: EmbeddingsRequest, receive: Receive, limiter: CapacityLimiter) -> dict[str, Any]:
        """The response. Texts of similar length run together, as many as there are rows.

        Args:
            request: the request.
            receive: of its connection.
            limiter: of the threads that encode texts.

        Raises:
            ApiError: the request does not fit; QueueFullError and SchedulerClosedError as Scheduler.submit.
            UserError: the target gives no embeddings.
        """
        size = self._model.engine.head.hidden_size
        if request.dimensions not in (None, size):
            raise ApiError(
                400,
                f"dimensions is {request.dimensions}; this model's embeddings have {size}, and cannot be shortened. "
                "Leave it out",
                param="dimensions",
            )
        texts = await to_thread.run_sync(self._ids, request, limiter=limiter)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = np.empty((len(texts), size), np.float32)
        rows = self._model.engine.batch
        for first in range(0, len(order), rows):
            together = order[first : first + rows]
            pooled = await self._run(request, [texts[index] for index in together], receive, waits=first > 0)
            for index, states in zip(together, pooled, strict=True):
                found[index] = states.embedding()
        tokens = sum(map(len, texts))
        as_text = request.encoding_format == "base64"
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _base64(row) if as_text else row.tolist()}
                for index, row in enumerate(found)
            ],
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    async def _run(
        self, request: EmbeddingsRequest, texts: list[np.ndarray], receive: Receive, *, waits: bool
    ) -> list[PooledStates]:
        """Compute texts, at most one for each row.

        waits: whether to wait for places in the queue, instead of raising QueueFullError.
        """
        queue: asyncio.Queue[Item] = asyncio.Queue()
        adapters = self._model.engine.adapters
        pooled = [PooledStates(request.pooling or self.pooling) for _ in texts]
        sequences = [
            ServedSequence(
                ids,
                0,
                GenerationConfig(),
                self._model.tokenizer,
                self._model.engine.vocab_size,
                partial(self._outbox.send, queue, index),
                adapter=adapters.number(request.model) if request.model in adapters.loaded else 0,
                states=states,
            )
            for index, (ids, states) in enumerate(zip(texts, pooled, strict=True))
        ]
        while True:
            try:
                self._scheduler.submit(sequences)
                break
            except QueueFullError:
                if not waits:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
        await AnswerEvents(sequences, queue, self._scheduler.cancel).all(receive)
        return pooled

    def _ids(self, request: EmbeddingsRequest) -> list[np.ndarray]:
        """Token ids [n] of each text, checked against the vocabulary and the context."""
        tokenizer, engine = self._model.tokenizer, self._model.engine
        found = []
        for text in request.texts:
            if isinstance(text, str):
                if len(text) > engine.context and (fewest := tokenizer.fewest_tokens(text)) > engine.context:
                    raise too_long(f"{fewest:,} tokens or more", engine.context)
                text = tokenizer.encode(text)
            ids = np.asarray(text, np.int64)
            if ids.size == 0:
                raise ApiError(400, "a text of input has no tokens. Leave empty texts out", param="input")
            if ids.size > engine.context:
                raise too_long(f"{ids.size:,} tokens", engine.context)
            if ids.max() >= engine.vocab_size:
                raise ApiError(
                    400, f"token id {ids.max()}; this model's are 0..{engine.vocab_size - 1}. Use these", param="input"
                )
            found.append(ids)
        return found


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
