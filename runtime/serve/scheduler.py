"""Continuous batching: sequences share the engine's rows as they come and go, in a separate thread.

When a sequence ends, the next one takes over its row. A decode pass adds one token to every running sequence. Between
two decode passes at most two chunks of prompts are computed, so a long prompt does not stop the other sequences.

The tokens of a sequence do not depend on the other sequences, down to the last digit of its logits. The kernels round
differently for a pass with many tokens, with few tokens, and with one token per row. Therefore:
- each prompt is cut as it would be cut alone, at multiples of `chunk`
- prompts are computed together only if each of them alone would have a pass of many tokens in the same bucket
- a decode pass holds single tokens only, or guesses that are checked with the bits of single tokens
- a prefix that is reused from the cache also ends at a multiple of `chunk`
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..engine.chunks import plan_chunks
from ..engine.engine import Engine
from ..engine.kv_store import KVStore
from ..generation.decode import Forward, GenerationTimings, StepBatch
from .answers.lookup import AnswerLookup
from .sequence import ServedSequence

CHUNK = 128  # tokens; on host CPUs a larger pass is hardly cheaper per token
MANY_TOKENS = 32  # kernels treat passes with fewer tokens differently
QUEUE = 64  # sequences that may wait

log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """The queue has no room for a request."""


class SchedulerClosedError(Exception):
    """The scheduler is shutting down."""


@dataclass
class SchedulerCounters:
    """Totals since the start, for metrics."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    restored_tokens: int = 0  # those of the cached ones that came from the store
    new_tokens: int = 0
    decode_passes: int = 0
    prefill_passes: int = 0
    timings: GenerationTimings = field(default_factory=GenerationTimings)  # of the passes

    @property
    def engine_seconds(self) -> float:
        """Seconds in the model."""
        return self.timings.prefill + self.timings.decode


class Scheduler:
    """Assigns sequences to the engine's rows and runs the passes.

    `submit`, `cancel` and `close` may be called from any thread. Only the engine's thread calls `step`, or a test that
    does not start that thread.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        queue: int = QUEUE,
        chunk: int = CHUNK,
        cache_memory: int = 0,
        prompt_lookup: int = 0,
        after_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        queue: sequences that may wait in addition to those that run
        chunk: most prompt tokens of a sequence in one pass
        cache_memory: bytes for the keys and values of texts whose row another sequence took over
        prompt_lookup: tokens to guess at once while an answer runs alone; 0 guesses nothing
        after_pass: called in the engine's thread when a pass has sent its events
        """
        self.engine = engine
        self.queue = queue
        self.chunk = min(chunk, engine.buckets[-1])
        self.prefill_budget = 2 * self.chunk  # prompt tokens between two decode passes
        self.store = KVStore(engine.cache, cache_memory, self.chunk)
        self.after_pass = after_pass
        self.counters = SchedulerCounters()
        self._step = StepBatch(engine, self.counters.timings)
        self._lookup = AnswerLookup(engine, self._step, prompt_lookup, self._select_token)
        self._running: list[ServedSequence] = []  # in order of arrival
        self._waiting: deque[ServedSequence] = deque()
        self._free_rows = deque(range(engine.batch))  # the row unused for longest comes first
        self._reserved = 0  # places in the queue of requests that are being prepared
        self._closed = self._aborted = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def running(self) -> int:
        """How many sequences have a row, or get one in the next pass."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many sequences are in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs and accepts sequences."""
        return self._thread.is_alive() and not self._closed

    def start(self) -> None:
        """Start the engine's thread. Raises UserError in a forked child of the process that loaded the model."""
        self.engine.engine_lock.check_process()
        self._thread.start()

    def reserve(self, count: int) -> None:
        """Keep `count` places in the queue for a request that is being prepared; `submit` or `release` gives them back.

        Raises QueueFullError if the queue has no room for all, SchedulerClosedError while shutting down.
        """
        with self._changed:
            self._check_room(count)
            self._reserved += count

    def release(self, count: int) -> None:
        """Give back places of a request that could not be prepared."""
        with self._changed:
            self._reserved -= count

    def submit(self, sequences: Sequence[ServedSequence], *, reserved: int = 0) -> None:
        """Put all of these sequences into the queue, or none of them.

        Args:
            sequences: what to generate.
            reserved: places that `reserve` has kept for them, at least as many as sequences; 0 if none are kept.

        Raises:
            QueueFullError: the queue has no room for all.
            SchedulerClosedError: the scheduler is shutting down.
        """
        with self._changed:
            self._check_room(0 if reserved else len(sequences))
            self._reserved -= reserved
            self._waiting.extend(sequences)
            self._changed.notify()

    def _check_room(self, count: int) -> None:
        has_no_thread = self._thread.ident is not None and not self._thread.is_alive()  # in the child of a fork
        if self._closed or has_no_thread:
            raise SchedulerClosedError
        idle = self.engine.batch - len(self._running)
        if count and len(self._waiting) + self._reserved + count > self.queue + idle:
            raise QueueFullError

    def cancel(self, sequences: Sequence[ServedSequence]) -> None:
        """Stop these sequences. Their rows are free before the next pass. Finished sequences do not change."""
        with self._changed:
            for sequence in sequences:
                sequence.cancelled = True
            self._waiting = deque(sequence for sequence in self._waiting if not sequence.cancelled)

    def close(self, grace: float = 0.0) -> None:
        """Accept no more sequences, wait `grace` seconds for the running and waiting ones, and fail the rest."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(grace)
            self._aborted = True
            self._thread.join()

    def step(self) -> bool:
        """Compute up to two chunks of prompts, then one token for each sequence whose prompt is in the cache.

        Returns whether any sequence is left.
        """
        self._admit()
        if self._aborted:
            self._fail(list(self._running), SchedulerClosedError("the server is shutting down"))
        budget = self.prefill_budget
        while batch := self._next_prefill(budget):
            budget -= self._prefill(batch)
        self._retire()
        self._decode([sequence for sequence in self._running if sequence.is_decoding])
        self._retire()
        return bool(self._running or self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
            with self.engine.engine_lock.take():
                while self.step():
                    pass

    def _admit(self) -> None:
        """Move sequences from the queue to the running ones while there are rows."""
        with self._changed:
            while self._waiting and (self._aborted or len(self._running) < self.engine.batch):
                self._running.append(self._waiting.popleft())

    def _retire(self) -> None:
        """Free the rows of finished and cancelled sequences. What these rows hold may serve as another's prefix."""
        for sequence in [sequence for sequence in self._running if sequence.finished or sequence.cancelled]:
            self._running.remove(sequence)
            if sequence.row >= 0:
                self._free_rows.append(sequence.row)

    def _next_prefill(self, budget: int) -> list[ServedSequence]:
        """The sequences of the next prefill pass: the oldest with an unfinished prompt, and those that may join it.

        A sequence may join if its next chunk alone would run in a pass of many tokens in the same bucket. Those whose
        states are read do not run together with others.
        """
        pending = [s for s in self._running if not (s.is_decoding or s.cancelled or s.finished)]
        batch: list[ServedSequence] = []
        for index, sequence in enumerate(pending):
            if budget <= 0 or self._waits_for_prefix(sequence, pending[:index]):
                continue
            if sequence.row < 0:
                self._assign_row(sequence)
            size = len(self._next_chunk(sequence))
            if not batch:
                bucket = self._single_bucket(size)
            elif size < MANY_TOKENS or size > budget or bucket is None or self._single_bucket(size) != bucket:
                continue
            if batch and (sequence.states is None) != (batch[0].states is None):
                continue
            batch.append(sequence)
            budget -= size
            if size < MANY_TOKENS:
                break
        return batch

    def _waits_for_prefix(self, sequence: ServedSequence, earlier: Sequence[ServedSequence]) -> bool:
        """Whether an earlier sequence is about to compute the first chunk of this prompt, too."""
        first_chunk = sequence.prompt[: self.chunk]
        may_share = sequence.reuse_prefix and sequence.row < 0 and len(sequence.prompt) > self.chunk
        return may_share and any(
            other.adapter == sequence.adapter and np.array_equal(first_chunk, other.prompt[: self.chunk])
            for other in earlier
        )

    def _next_chunk(self, sequence: ServedSequence) -> np.ndarray:
        """The prompt tokens [n] that the sequence computes next, n <= chunk."""
        return sequence.prompt[sequence.computed_tokens : sequence.computed_tokens + self.chunk]

    def _single_bucket(self, tokens: int) -> int | None:
        """The bucket that the engine takes for `tokens` tokens; None if it takes several passes."""
        chunks = plan_chunks(tokens, self.engine.buckets, self.engine.padding)
        return chunks[0][0] if len(chunks) == 1 else None

    def _prefill(self, sequences: list[ServedSequence]) -> int:
        """Compute a chunk of each prompt, and the first new token of each prompt that ends. Returns the token count."""
        sizes = []
        for sequence in sequences:
            chunk = self._next_chunk(sequence)
            self._step.feed(sequence.row, chunk, sequence.computed_tokens)
            sizes.append(len(chunk))
        # The states of a prompt are read in passes of their own, since these return no logits.
        reads = sequences[0].states is not None
        output = self._run_pass(sequences, sizes, self.engine.hidden if reads else None)
        self.counters.prefill_passes += 1
        if output is not None:
            for sequence, size in zip(sequences, sizes, strict=True):
                if reads and not self._read_states(sequence, output[sequence.row, :size]):
                    continue
                if sequence.computed_tokens == len(sequence.prompt):
                    sequence.end_prompt()
                    if not sequence.finished:
                        last = output[sequence.row, size - 1 : size] if reads else None
                        logits = output[sequence.row] if last is None else self.engine.head.logits(last)[0]
                        self._select_token(sequence, logits)
        self.after_pass()
        return sum(sizes)

    def _read_states(self, sequence: ServedSequence, states: np.ndarray) -> bool:
        """Give a sequence the hidden states [n, hidden_size] of a chunk of its prompt. Returns whether it took them."""
        try:
            if sequence.states is not None:
                sequence.states.read(self.engine.head, states)
        except Exception as error:  # states that are not numbers end this sequence only
            sequence.fail(error)
            return False
        return True

    def _decode(self, sequences: list[ServedSequence]) -> None:
        if sequences and not self._checks_guesses(sequences[0]):
            for sequence in sequences:
                self._step.feed_token(sequence.row, sequence.last_token, sequence.computed_tokens)
            before = self.counters.timings.decode
            logits = self._run_pass(sequences, [1] * len(sequences))
            self.counters.decode_passes += 1
            if len(sequences) == 1:
                self._lookup.pace.stepped(self.counters.timings.decode - before)
            if logits is not None:
                for sequence in sequences:
                    self._select_token(sequence, logits[sequence.row])
            self.after_pass()

    def _checks_guesses(self, sequence: ServedSequence) -> bool:
        """Run a pass that checks guesses, if the sequence runs alone and they are worth it. Returns whether it ran."""
        if len(self._running) > 1 or not (guessed := self._lookup.guess(sequence)).size:
            return False
        self.counters.decode_passes += 1
        try:
            self._lookup.check(sequence, guessed)
        except Exception as error:  # as in _run_pass
            log.exception("a pass of the model failed")
            sequence.fail(error)
        self.after_pass()
        return True

    def _run_pass(
        self, sequences: list[ServedSequence], sizes: Sequence[int], forward: Forward | None = None
    ) -> np.ndarray | None:
        """Run the pass that was fed sizes[i] tokens of sequences[i]; `forward` replaces Engine.forward.

        Returns logits [B, V], or what `forward` does; the next pass overwrites it. If the pass fails, fails the
        sequences and returns None.
        """
        try:
            output = self._step.run(forward)
        except Exception as error:  # any failure must leave the other sequences, and later ones, alone
            log.exception("a pass of the model failed")
            self._fail(sequences, error)
            return None
        for sequence, size in zip(sequences, sizes, strict=True):
            sequence.computed_tokens += size
        return output

    def _select_token(self, sequence: ServedSequence, logits: np.ndarray) -> None:
        try:
            self._step.select(sequence.select_token, logits, row=sequence.row)
        except Exception as error:  # a grammar or a setting that allows no token ends this sequence only
            sequence.fail(error)
        else:
            self.counters.new_tokens += 1

    def _fail(self, sequences: Sequence[ServedSequence], error: Exception) -> None:
        for sequence in sequences:
            sequence.fail(error)
        self.after_pass()

    def _assign_row(self, sequence: ServedSequence) -> None:
        """Give the sequence a free row and the prefix of its prompt that the cache holds."""
        sequence.row, sequence.cached_tokens = self._place(sequence)
        sequence.computed_tokens = sequence.cached_tokens
        self.counters.prompt_tokens += len(sequence.prompt)
        self.counters.cached_tokens += sequence.cached_tokens

    def _place(self, sequence: ServedSequence) -> tuple[int, int]:
        """Take a free row. Returns (row, tokens of the prompt that this row now holds).

        The row that the prompt continues is taken if it is free. Otherwise the row unused for longest is taken, and the
        prefix that another row or the store holds is copied to it. What the row held goes to the store.
        """
        prompt, adapter, prefixes = sequence.prompt, sequence.adapter, self.engine.prefixes
        if not sequence.reuse_prefix:
            row = self._free_rows.popleft()
            self._leave(row, 0)
            prefixes.assign(row, adapter)
            return row, 0
        shared = prefixes.shared(prompt, adapter) // self.chunk * self.chunk
        row = max(self._free_rows, key=lambda row: shared[row])
        if not (shared[row] == shared.max() > 0 and 2 * shared[row] >= prefixes.length[row]):
            row = self._free_rows[0]
        self._free_rows.remove(row)
        self._leave(row, shared[row])
        prefixes.assign(row, adapter)
        held = prefixes.bring(prompt, row) // self.chunk * self.chunk if shared.any() else 0
        return row, self._restore(row, prompt, held)

    def _leave(self, row: int, kept: int) -> None:
        """Store what a row holds, unless it is only the `kept` tokens that its next sequence continues."""
        prefixes = self.engine.prefixes
        if prefixes.length[row] // self.chunk * self.chunk > kept:
            self.store.keep(row, prefixes.row(row), int(prefixes.adapter[row]))

    def _restore(self, row: int, prompt: np.ndarray, held: int) -> int:
        """Add to the `held` tokens of a prompt in a row those that are stored. Returns how many it holds then."""
        prefixes, adapter = self.engine.prefixes, int(self.engine.prefixes.adapter[row])
        stored = self.store.held(prompt[:-1], adapter)  # the last token is always computed: its logits are needed
        if stored - held < self.engine.cache.worth_copying:
            return held
        blocks = self.store.blocks(prompt[:stored], adapter)[held // self.chunk :]
        prefixes.extend(row, held, prompt[held:stored], blocks)
        self.counters.restored_tokens += stored - held
        return stored
