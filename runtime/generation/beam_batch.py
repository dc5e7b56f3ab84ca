"""Beam search for the prompts of a call that run together, and the result of the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..engine.engine import Engine
from ..engine.engine_lock import Cancelled
from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .batch import GenerateCall
from .beam_search import REASONS, Beams, BeamSearch
from .decode import GenerationTimings, StepBatch
from .output import GenerateOutput, join_steps
from .sequences import Sequences, join
from .token_selector import TokenSelector


class BeamBatch:
    """Prompts whose beams run together, each beam in a row of the cache."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Callable[[], Tokenizer],
        call: GenerateCall,
        prompts: Sequence[np.ndarray],
        first: int,
        limits: Sequence[int],
    ) -> None:
        """Begin a search per prompt.

        Args:
            engine: runs the rows.
            tokenizer: returns the tokenizer; called only if there are stop strings.
            call: the settings.
            prompts: token ids [n] without padding, at most engine.batch // num_beams of them.
            first: index of prompts[0] among all prompts of the call; it gives each prompt its own random stream.
            limits: new tokens of each prompt.

        Raises:
            UserError: a setting does not suit this artifact.
        """
        config = call.config
        self.engine, self.call, self.prompts = engine, call, prompts
        self.adapters = list(call.adapters[first : first + len(prompts)]) or [0] * len(prompts)
        self.tokenizer = tokenizer() if config.stop_strings else None
        beams = range(config.num_beams)
        allowed = call.allowed([first + index for index in range(len(prompts)) for _ in beams])
        self.selector = TokenSelector(config, engine.vocab_size, (), call.logits_processors, allowed)
        self.sequences = Sequences([p for p in prompts for _ in beams], [limit for limit in limits for _ in beams])
        self.searches = [
            BeamSearch(
                config, limits[index], np.random.default_rng([call.seed, first + index]) if config.do_sample else None
            )
            for index in range(len(prompts))
        ]

    def run(self, timings: GenerationTimings) -> list[Beams]:
        """Return the best num_beams sequences of each prompt, best first; the caller holds the engine's lock.

        A sequence that is shorter than another ends in -1. A cancelled call ends with the sequences found so far.

        A prompt is prefilled once, in the row of its first beam; afterwards the cache rows follow their beams.
        """
        beams, sequences = self.call.config.num_beams, self.sequences
        source = np.arange(self.engine.batch)
        for step, (log_probs, logprobs) in enumerate(self._steps(timings, source)):
            source[:] = np.arange(self.engine.batch)
            for first, search in zip(range(0, len(sequences), beams), self.searches, strict=True):
                if not search.closed:
                    mine = slice(first, first + beams)
                    came_from, candidates = search.best(log_probs[mine], logprobs[mine])
                    prompt = sequences.row(first)[: sequences.prompt_length[first]]
                    candidates.ended[:] = self._ended(prompt, candidates, step, last=step == search.limit - 1)
                    source[mine] = first + search.advance(came_from, candidates)
                    sequences.ids[mine, sequences.prompt_length[first] :][:, : search.limit] = search.running.tokens
                    sequences.length[mine] = [length + 1 for length in sequences.length[mine]]
            sequences.steps += 1
        return [search.finished for search in self.searches]

    def _steps(self, timings: GenerationTimings, source: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each step's log-probabilities (processed, and the model's own) [rows, V], while a search is open.

        Args:
            source: int [B]; before the next step, each cache row takes the content of this row.
        """
        engine, sequences = self.engine, self.sequences
        beams, rows = self.call.config.num_beams, len(sequences)
        step = StepBatch(engine, timings, self._forward)
        for row in range(rows):
            engine.prefixes.assign(row, self.adapters[row // beams])
        for row, prompt in zip(range(0, rows, beams), self.prompts, strict=True):
            step.feed_prompt(row, prompt, engine.prefixes.bring(prompt, row) if self.call.reuse_prefix else 0)
        for number in range(sequences.limit):
            try:
                logits = step.run()[:rows]
            except Cancelled:
                for search in self.searches:
                    search.cancel()
                return
            if number == 0:
                logits = np.repeat(logits[::beams], beams, axis=0)  # the beams of a prompt are equal so far
            yield step.select(self.selector.log_probabilities, sequences, logits)
            still_open = [not search.closed for search in self.searches]
            if number == sequences.limit - 1 or not any(still_open):
                return
            engine.reorder(source, max(sequences.length) - 1)
            last = sequences.newest()
            for row in range(rows):
                if still_open[row // beams]:
                    step.feed_token(row, last[row], sequences.length[row] - 1)

    def _forward(self, tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        return self.engine.forward(tokens, start, length, self.call.cancelled.is_set)

    def _ended(self, prompt: np.ndarray, candidates: Beams, step: int, last: bool) -> np.ndarray:
        """Return why each candidate ends with its last token, as an index of REASONS; 0 if it does not end.

        Args:
            last: the candidates have reached their limit of new tokens.
        """
        config, new = self.call.config, candidates.tokens[:, : step + 1]
        found = [("eos", np.isin(new[:, -1], config.eos_token_id))]
        if self.tokenizer is not None:
            written = [self.tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in new]
            found.append(("stop_string", np.array([any(s in text for s in config.stop_strings) for text in written])))
        for criterion in self.call.stopping_criteria:
            ids = np.concatenate([np.broadcast_to(prompt, (len(new), len(prompt))), new], axis=1)
            says = np.asarray(criterion(ids, tuple(self.selector.scores) if config.output_scores else None), bool)
            if says.shape not in ((), (len(new),)):
                raise UserError(
                    f"a stopping_criteria returned shape {says.shape}; needed: one boolean, or {len(new)}, one per "
                    "candidate of the beams"
                )
            found.append(("stopping_criteria", np.broadcast_to(says, len(new))))
        found.append(("length", np.full(len(new), last)))
        ended = np.zeros(len(new), np.int8)
        for reason, hits in reversed(found):  # the first reason counts
            ended[hits] = REASONS.index(reason)
        return ended


def beam_output(
    ids: np.ndarray, batches: Sequence[BeamBatch], found: Sequence[Beams], timings: GenerationTimings
) -> np.ndarray | GenerateOutput:
    """Join the results of the batches: int64 [B, n + new], or a GenerateOutput with return_dict_in_generate.

    Args:
        ids: the prompts [B, n], with their padding.
        batches: those that ran, in the order of their prompts.
        found: the sequences of each prompt, best first.
        timings: of the whole call.
    """
    config = batches[0].call.config
    kept = [beams.take(np.arange(config.num_return_sequences)) for beams in found]
    new = [row[row >= 0] for beams in kept for row in beams.tokens]
    sequences = join(np.repeat(ids, config.num_return_sequences, axis=0), new, config.padding)
    if not config.return_dict_in_generate:
        return sequences
    width = sequences.shape[1] - ids.shape[1]
    steps = max(batch.sequences.steps for batch in batches)
    rows = [len(batch.sequences) for batch in batches]
    first_rows = [config.num_beams * index for index in range(len(kept))]
    came_from = [np.where(b.came_from < 0, -1, b.came_from + row) for b, row in zip(kept, first_rows, strict=True)]
    return GenerateOutput(
        sequences,
        tuple(REASONS[code] or "length" for beams in kept for code in beams.ended),
        tuple(map(len, new)),
        timings,
        scores=join_steps([b.selector.scores for b in batches], rows, steps) if config.output_scores else None,
        logits=join_steps([b.selector.logits for b in batches], rows, steps) if config.output_logits else None,
        logprobs=_stacked([beams.logprobs for beams in kept], width, 0) if config.output_logprobs else None,
        sequences_scores=np.concatenate([beams.scores for beams in kept]),
        beam_indices=_stacked(came_from, width, -1),
    )


def _stacked(parts: Sequence[np.ndarray], width: int, filler: int) -> np.ndarray:
    """Concatenate arrays [n, steps], each cut or filled up to `width` columns."""
    return np.concatenate(
        [np.pad(p[:, :width], ((0, 0), (0, max(0, width - p.shape[1]))), constant_values=filler) for p in parts]
    )


def beam_search(
    engine: Engine,
    tokenizer: Callable[[], Tokenizer],
    call: GenerateCall,
    source: str,
    ids: np.ndarray,
    rows: Sequence[np.ndarray],
    limits: Sequence[int],
) -> np.ndarray | GenerateOutput:
    """Search with beams for all prompts of a call, as many at once as the engine has rows for.

    Args:
        engine, tokenizer, call: as in `BeamBatch`.
        source: the model that was exported, for the remedy of an error.
        ids: the prompts [B, n], with their padding.
        rows: the same without padding.
        limits: how many tokens may follow each of them.

    Returns:
        As `beam_output`.

    Raises:
        UserError: the engine has fewer rows than there are beams.
    """
    beams = call.config.num_beams
    at_once = engine.batch // beams
    if at_once == 0:
        raise UserError(
            f"num_beams is {beams}; this artifact has {engine.batch} rows (batch), one a beam. "
            f"Export with `make export MODEL={source} BATCH={beams}`"
        )
    timings = GenerationTimings()
    batches = [
        BeamBatch(engine, tokenizer, call, rows[mine], first, limits[mine])
        for first in range(0, len(rows), at_once)
        for mine in [slice(first, first + at_once)]
    ]
    with engine.engine_lock.take(call.cancelled):
        found = [done for batch in batches for done in batch.run(timings)]
    return beam_output(ids, batches, found, timings)
