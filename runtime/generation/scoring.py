"""What the model thinks of given tokens, instead of generating: log-probabilities, and embeddings of texts.

Both need the hidden states of every position (`Engine.hidden`), so an artifact of the cpu target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..backend.cpu_head import CpuHead
from ..engine.engine import Engine
from ..errors import LogitsError, UserError
from .sampler import NotNumbersError, Sampler

LOGITS_AT_ONCE = 1 << 24  # elements of a block of logits: 64 MB
POOLINGS = ("last", "mean", "cls")


@dataclass(frozen=True)
class Score:
    """The probability of a continuation.

    Attributes:
        ids: the tokens of the continuation, [n].
        logprobs: the log-probability (in nats) of each, given the prompt and the tokens before it, float32 [n].
        greedy: whether each was the likeliest token.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    greedy: np.ndarray

    @property
    def sum(self) -> float:
        """The log-probability of the whole continuation."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding of the prompt gives this continuation."""
        return bool(self.greedy.all())


def score(engine: Engine, pairs: Sequence[tuple[np.ndarray, np.ndarray]], adapter: int = 0) -> list[Score]:
    """Return the score of each continuation. The caller holds the engine's lock.

    Pairs with a common beginning run one after the other, and the beginning is computed once.

    Args:
        engine: runs the passes; it has a `head`.
        pairs: (prompt [n], continuation [m]) token ids, n and m at least 1.
        adapter: the number of the adapter; 0: none.

    Raises:
        UserError: a pair does not fit the context, or the target cannot do this; nothing has run.
        LogitsError: logits are not numbers.
    """
    head = engine.head
    for prompt, continuation in pairs:
        # The last token is not fed, since nothing follows it.
        _check_length(engine, len(prompt) + len(continuation) - 1)
    order = sorted(range(len(pairs)), key=lambda index: np.concatenate(pairs[index]).tolist())
    scores: dict[int, Score] = {}
    sampler = Sampler()
    for first in range(0, len(order), engine.batch):
        together = order[first : first + engine.batch]
        whole = [np.concatenate(pairs[index]) for index in together]
        rows, cached = engine.prefixes.place(whole, True, [adapter] * len(whole))
        # The state of the last prompt token gives the first token of the continuation.
        begins = [
            min(int(held), len(pairs[index][0]) - 1) for index, held in zip(together, cached.tolist(), strict=True)
        ]
        fed = [ids[begin:-1] for ids, begin in zip(whole, begins, strict=True)]
        hidden = _run(engine, fed, rows.tolist(), begins)
        for index, row, begin in zip(together, rows.tolist(), begins, strict=True):
            prompt, continuation = pairs[index]
            place = len(prompt) - 1 - begin
            scores[index] = _score(head, sampler, hidden[row, place : place + len(continuation)], continuation)
    return [scores[index] for index in range(len(pairs))]


def every_logit(engine: Engine, rows: Sequence[np.ndarray], adapters: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the logits float32 [n, V] of every position of each row. The caller holds the engine's lock.

    Args:
        engine: runs the passes; it has a `head`.
        rows: token ids [n] of each, n at least 1.
        adapters: the number of each row's adapter; 0: none.

    Raises:
        UserError: a row does not fit the context, or the target cannot do this; nothing has run.
    """
    head = engine.head
    for row in rows:
        _check_length(engine, len(row))
    for first in range(0, len(rows), engine.batch):
        given = list(rows[first : first + engine.batch])
        places = engine.prefixes.place(given, False, list(adapters[first : first + engine.batch])).rows.tolist()
        hidden = _run(engine, given, places, [0] * len(given))
        for ids, place in zip(given, places, strict=True):
            states = hidden[place, : len(ids)]
            yield np.concatenate([head.logits(states[block]) for block in _blocks(len(ids), head.vocab_size)])


def embed(engine: Engine, texts: Sequence[np.ndarray], pooling: str, normalize: bool, adapter: int = 0) -> np.ndarray:
    """Return embeddings float32 [texts, hidden_size]. The caller holds the engine's lock.

    Args:
        engine: runs the passes; it has a `head`.
        texts: token ids [n] of each, n at least 1.
        pooling: "last" takes the state after the last token, "mean" the mean of all, "cls" that of the first token.
        normalize: divide each by its Euclidean norm.
        adapter: the number of the adapter; 0: none.

    Raises:
        UserError: a text does not fit the context, `pooling` is unknown, or the target cannot do this; nothing has run.
        LogitsError: states are not numbers.
    """
    head = engine.head
    if pooling not in POOLINGS:
        raise UserError(f"pooling is {pooling!r}; needed: one of {', '.join(POOLINGS)}")
    for text in texts:
        _check_length(engine, len(text))
    out = np.empty((len(texts), head.hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # rows of a pass have similar lengths
    for first in range(0, len(order), engine.batch):
        together = order[first : first + engine.batch]
        given = [texts[index] for index in together]
        rows = engine.prefixes.place(given, False, [adapter] * len(given)).rows.tolist()
        hidden = _run(engine, given, rows, [0] * len(given))
        for index, row in zip(together, rows, strict=True):
            states = hidden[row, : len(texts[index])]
            kept = {"last": states[-1:], "mean": states, "cls": states[:1]}[pooling]
            out[index] = head.normalised(kept).mean(axis=0)
    if not np.isfinite(out).all():
        raise LogitsError("hidden states are not numbers. Compare the artifact's files with `edgellama check`")
    if normalize:
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return out


def _check_length(engine: Engine, tokens: int) -> None:
    if tokens > engine.context:
        raise UserError(
            f"a text has {tokens:,} tokens; this artifact holds {engine.context:,} (context). Shorten the text, or "
            f"export with `make export MODEL=... CONTEXT={tokens}`"
        )


def _run(engine: Engine, fed: Sequence[np.ndarray], rows: Sequence[int], begins: Sequence[int]) -> np.ndarray:
    """Feed tokens [n] to each of these cache rows from its position on; return the hidden states [B, most n, K]."""
    tokens = np.zeros((engine.batch, max(map(len, fed))), np.int64)
    start, length = np.zeros(engine.batch, np.int64), np.zeros(engine.batch, np.int64)
    for ids, row, begin in zip(fed, rows, begins, strict=True):
        tokens[row, : len(ids)] = ids
        start[row], length[row] = begin, len(ids)
    return engine.hidden(tokens, start, length)


def _blocks(count: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    return (slice(first, first + size) for first in range(0, count, size))


def _score(head: CpuHead, sampler: Sampler, states: np.ndarray, ids: np.ndarray) -> Score:
    """Return the score of tokens [n] from the states [n, K] before each."""
    logprobs, greedy = np.empty(len(ids), np.float32), np.empty(len(ids), bool)
    for block in _blocks(len(ids), head.vocab_size):
        logits = head.logits(states[block])
        for row, token in enumerate(ids[block].tolist()):
            try:
                logprobs[block.start + row] = logits.item(row, token) - sampler.logsumexp(logits, row)
                greedy[block.start + row] = sampler.likeliest(logits, row) == token
            except NotNumbersError as error:
                raise LogitsError(
                    "logits are not numbers. Compare the artifact's files with `edgellama check`, and export it again"
                ) from error
    return Score(ids, logprobs, greedy)
