"""Continuous batching: answers share the engine's rows as they come and go, in a thread of its own.

A row is taken over by the next answer when one ends. Between two decode passes, which add a token to every running
answer, at most two chunks of prompts are computed, so that a long prompt does not stop the others.

An answer is the same whoever else is running, to the last digit of its logits. Kernels round by what a pass holds:
many tokens, few, or one a row. So each prompt is cut as it would be alone, at multiples of `chunk`; prompts are
computed together where each would alone have a pass of many tokens in the same bucket; and a decode pass holds nothing
but single tokens. A beginning that lies in the cache is taken up to a multiple of `chunk`, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.engine.chunks import plan_chunks
from runtime.engine.engine import Engine
from runtime.serve.answer import Answer

CHUNK = 128  # tokens; on host CPUs a larger pass costs hardly less a token
MANY = 32  # more than what kernels treat as few
QUEUE = 64  # answers that may wait

log = logging.getLogger(__name__)


class Busy(Exception):  # noqa: N818 - a state, told to the client as such
    """The queue is full."""


class Closed(Exception):  # noqa: N818
    """The scheduler is shutting down."""


@dataclass
class Counts:
    """Since the start; for metrics."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    decode_passes: int = 0
    prefill_passes: int = 0
    engine_seconds: float = 0.0


class Scheduler:
    """submit, cancel and close may be called from any thread; `step` is the engine thread's, or a test's."""

    def __init__(
        self,
        engine: Engine,
        *,
        queue: int = QUEUE,
        chunk: int = CHUNK,
        after_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """queue: answers that may wait beside those that run. after_pass: called in the engine's thread when a pass has
        sent its events."""
        self.engine = engine
        self.queue = queue
        self.chunk = min(chunk, engine.buckets[-1])
        self.budget = 2 * self.chunk
        self.after_pass = after_pass
        self.counts = Counts()
        self._running: list[Answer] = []  # in order of arrival
        self._waiting: deque[Answer] = deque()
        self._free = deque(range(engine.batch))  # the row unused for longest first
        self._closed = self._aborted = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is there to serve."""
        return self._thread.is_alive() and not self._closed

    def start(self) -> None:
        self._thread.start()

    def submit(self, answers: Sequence[Answer]) -> None:
        """Have these answered, all or none. Raises Busy where the queue has no room, Closed while shutting down."""
        with self._changed:
            if self._closed:
                raise Closed
            idle = self.engine.batch - len(self._running)
            if len(self._waiting) + len(answers) > self.queue + idle:
                raise Busy
            self._waiting.extend(answers)
            self._changed.notify()

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Answer these no further: their rows are free before the next pass. Those that have ended are left alone."""
        with self._changed:
            for answer in answers:
                answer.cancelled = True
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)

    def close(self, grace: float = 0.0) -> None:
        """Take no more answers, let those that run or wait end within `grace` seconds, and fail the others."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(grace)
            self._aborted = True
            self._thread.join()

    def step(self) -> bool:
        """Up to two chunks of prompts, then one token for each answer that has its prompt in the cache. Returns whether
        anything is left to do."""
        self._admit()
        if self._aborted:
            self._fail(list(self._running), Closed("the server is shutting down"))
        budget = self.budget
        while budget > 0 and (together := self._next_prefill(budget)):
            budget -= self._prefill(together)
        self._retire()
        self._decode([answer for answer in self._running if answer.texts.steps])
        self._retire()
        return bool(self._running or self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
            with self.engine.turn.take():
                while self.step():
                    pass

    def _admit(self) -> None:
        """Let those that wait run, as far as there are rows."""
        with self._changed:
            while self._waiting and (self._aborted or len(self._running) < self.engine.batch):
                self._running.append(self._waiting.popleft())

    def _retire(self) -> None:
        """Free the rows of answers that have ended or were cancelled; what they hold may serve another prompt."""
        for answer in [answer for answer in self._running if answer.finished or answer.cancelled]:
            self._running.remove(answer)
            if answer.row >= 0:
                self._free.append(answer.row)

    def _next_prefill(self, budget: int) -> list[Answer]:
        """Whose prompts go on in one pass: the first that has to, and those that alone would run in a pass like its."""
        left = [a for a in self._running if a.texts.steps == 0 and not (a.cancelled or a.finished)]
        together: list[Answer] = []
        for index, answer in enumerate(left):
            if budget <= 0 or self._awaits(answer, left[:index]):
                continue
            if answer.row < 0:
                answer.row, answer.cached = self._place(answer)
                answer.done = answer.cached
                self.counts.prompt_tokens += len(answer.prompt)
                self.counts.cached_tokens += answer.cached
            size = len(self._chunk(answer))
            if not together:
                bucket = self._bucket(size)
            elif size < MANY or size > budget or bucket is None or self._bucket(size) != bucket:
                continue
            together.append(answer)
            budget -= size
            if size < MANY:
                break
        return together

    def _awaits(self, answer: Answer, others: Sequence[Answer]) -> bool:
        """Whether one of the others is about to compute what this prompt begins with, too."""
        begins = answer.prompt[: self.chunk]
        shares = answer.reuse and answer.row < 0 and len(answer.prompt) > self.chunk
        return shares and any(np.array_equal(begins, other.prompt[: self.chunk]) for other in others)

    def _chunk(self, answer: Answer) -> np.ndarray:
        """The next tokens of its prompt."""
        return answer.prompt[answer.done : answer.done + self.chunk]

    def _bucket(self, tokens: int) -> int | None:
        """The bucket that the engine takes for a pass of so many tokens; None where it takes several."""
        chunks = plan_chunks(tokens, self.engine.buckets, self.engine.padding)
        return chunks[0][0] if len(chunks) == 1 else None

    def _prefill(self, answers: list[Answer]) -> int:
        """Compute a chunk of each prompt, and the first token of those that end. Returns how many tokens it was."""
        chunks = [self._chunk(answer) for answer in answers]
        logits = self._forward(answers, chunks)
        self.counts.prefill_passes += 1
        if logits is not None:
            for answer in answers:
                if answer.done == len(answer.prompt):
                    self._take(answer, logits)
        self.after_pass()
        return sum(map(len, chunks))

    def _decode(self, answers: list[Answer]) -> None:
        if answers:
            logits = self._forward(answers, [(answer.last,) for answer in answers])
            self.counts.decode_passes += 1
            if logits is not None:
                for answer in answers:
                    self._take(answer, logits)
            self.after_pass()

    def _forward(self, answers: list[Answer], tokens: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray | None:
        """One pass: each answer's tokens [n] go behind what it has in the cache. Logits [B, V], which the next pass
        overwrites; None where this one failed, and the answers with it."""
        whole = np.zeros((self.engine.batch, max(map(len, tokens))), np.int64)
        start, length = [0] * self.engine.batch, [0] * self.engine.batch
        for answer, new in zip(answers, tokens, strict=True):
            whole[answer.row, : len(new)] = new
            start[answer.row], length[answer.row] = answer.done, len(new)
        began = time.perf_counter()
        try:
            logits = self.engine.forward(whole, np.array(start), np.array(length))
        except Exception as error:  # whatever it is, the other answers and those to come are not to suffer
            log.exception("a pass of the model failed")
            self._fail(answers, error)
            return None
        finally:
            self.counts.engine_seconds += time.perf_counter() - began
        for answer, new in zip(answers, tokens, strict=True):
            answer.done += len(new)
        return logits

    def _take(self, answer: Answer, logits: np.ndarray) -> None:
        try:
            answer.take(logits[answer.row])
        except Exception as error:  # a grammar or a setting that leaves no token ends this answer, no other
            answer.fail(error)
        else:
            self.counts.new_tokens += 1

    def _fail(self, answers: Sequence[Answer], error: Exception) -> None:
        for answer in answers:
            answer.fail(error)
        self.after_pass()

    def _place(self, answer: Answer) -> tuple[int, int]:
        """A free row for its prompt, and how many of its tokens that row holds.

        The row that the prompt continues, where that is free; else the row unused for longest, and what another holds
        of the prompt is copied there.
        """
        if not answer.reuse:
            return self._free.popleft(), 0
        prompt, prefixes = answer.prompt, self.engine.prefixes
        shared = prefixes.shared(prompt) // self.chunk * self.chunk
        best = max(self._free, key=lambda row: shared[row])
        if not (shared[best] == shared.max() > 0 and 2 * shared[best] >= prefixes.length[best]):
            best = self._free[0]
        self._free.remove(best)
        return best, prefixes.bring(prompt, best) // self.chunk * self.chunk if shared.any() else 0
