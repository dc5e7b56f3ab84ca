"""Beam search for the prompts of a call that run together, and the call's result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..engine.engine import Engine
from ..engine.engine_lock import Cancelled
from ..errors import UserError
from ..text.tokenizer import Tokenizer
from .batch import Call
from .beam_search import REASONS, Beams, Search
from .decode import Timings
from .output import GenerateOutput
from .sampler import NotNumbersError
from .sequences import Texts, join
from .token_selector import Chooser


class BeamWave:
    """Prompts whose beams run together, each beam in a row of the cache."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Callable[[], Tokenizer],
        call: Call,
        prompts: Sequence[np.ndarray],
        first: int,
        limits: Sequence[int],
    ) -> None:
        """prompts: ids without padding, at most engine.batch // num_beams of them; first: the place of prompts[0] among
        all of the call, by which each draws on its own; limits: new tokens of each."""
        config = call.config
        self.engine, self.call, self.prompts = engine, call, prompts
        self.tokenizer = tokenizer() if config.stop_strings else None
        self.chooser = Chooser(config, engine.vocab_size, (), call.logits_processors)
        beams = range(config.num_beams)
        self.texts = Texts([p for p in prompts for _ in beams], [limit for limit in limits for _ in beams])
        self.searches = [
            Search(
                config, limits[index], np.random.default_rng([call.seed, first + index]) if config.do_sample else None
            )
            for index in range(len(prompts))
        ]
        self.scores: list[np.ndarray] = []  # a [rows, V] a step, where asked for
        self.logits: list[np.ndarray] = []

    def run(self, timings: Timings) -> list[Beams]:
        """The best num_beams texts of each prompt, best first, with the engine's turn taken; -1 follows the end of one
        that is shorter than another. Where the call is cancelled it ends with what there is.

        A prompt is prefilled once, in the row of its first beam; the cache rows follow their beams.
        """
        beams, texts = self.call.config.num_beams, self.texts
        source = np.arange(self.engine.batch)
        for step, logits in enumerate(self._steps(timings, source)):
            try:
                log_probs, logprobs = self._scored(logits)
            except NotNumbersError as error:
                raise RuntimeError(f"logits are not numbers after {max(texts.length)} tokens") from error
            source[:] = np.arange(self.engine.batch)
            for first, search in zip(range(0, len(texts), beams), self.searches, strict=True):
                if not search.closed:
                    mine = slice(first, first + beams)
                    came_from, candidates = search.best(log_probs[mine], logprobs[mine])
                    prompt, last = texts.row(first)[: texts.prompt_length[first]], step == search.limit - 1
                    candidates.ended[:] = self._ended(prompt, candidates, step, last)
                    source[mine] = first + search.advance(came_from, candidates)
                    texts.ids[mine, texts.prompt_length[first] :][:, : search.limit] = search.running.tokens
                    texts.length[mine] = [length + 1 for length in texts.length[mine]]
            texts.steps += 1
        return [search.finished for search in self.searches]

    def _steps(self, timings: Timings, source: np.ndarray) -> Iterator[np.ndarray]:
        """Logits [rows, V] step by step, as long as a search is open. source: [B], where each row of the cache is to
        come from before the next step."""
        engine, beams, rows = self.engine, self.call.config.num_beams, len(self.texts)
        start = np.zeros(engine.batch, np.int64)
        length = np.zeros(engine.batch, np.int64)
        tokens = np.zeros((engine.batch, max(self.texts.length)), np.int64)
        for row, prompt in zip(range(0, rows, beams), self.prompts, strict=True):
            start[row] = engine.prefixes.bring(prompt, row) if self.call.reuse_prefix else 0
            length[row] = len(prompt) - start[row]
            tokens[row, : length[row]] = prompt[start[row] :]
        tokens = tokens[:, : int(length.max())]
        timings.cached_tokens += int(start.sum())
        timings.prompt_tokens += int((start + length).sum())
        for step in range(self.texts.limit):
            began = time.perf_counter()
            try:
                logits = engine.forward(tokens, start, length, self.call.cancelled.is_set)[:rows]
            except Cancelled:
                for search in self.searches:
                    search.cancel()
                return
            spent = time.perf_counter() - began
            if step == 0:
                timings.prefill += spent
                logits = np.repeat(logits[::beams], beams, axis=0)  # a prompt's beams are alike yet
            else:
                timings.decode += spent
                timings.decode_steps += 1
            start[:rows] = self.texts.length
            yield logits
            open_ones = [not search.closed for search in self.searches]
            if step == self.texts.limit - 1 or not any(open_ones):
                return
            engine.reorder(source, int(start.max()))
            length[:rows] = np.repeat(open_ones, beams)
            tokens = np.zeros((engine.batch, 1), np.int64)
            tokens[:rows, 0] = self.texts.last()

    def _scored(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities [rows, V] as they count, processed and warped, and as the model has them."""
        config, chooser = self.call.config, self.chooser
        normalisers = [chooser.plain.log_normaliser(logits, row) for row in range(len(logits))]
        logprobs = logits - np.array(normalisers, np.float32)[:, None]
        scores = chooser.processed(self.texts, logprobs, list(range(len(logits))))
        scores = np.stack([chooser.sampler.warped(row) for row in scores])
        if config.output_logits:
            self.logits.append(logits.copy())
        if config.output_scores:
            self.scores.append(scores.copy())
        return scores, logprobs

    def _ended(self, prompt: np.ndarray, candidates: Beams, step: int, last: bool) -> np.ndarray:
        """Why each candidate ends with its last token, as indices of REASONS; 0 where it does not. last: it may have no
        more."""
        config, new = self.call.config, candidates.tokens[:, : step + 1]
        found = [("eos", np.isin(new[:, -1], config.eos_token_id))]
        if self.tokenizer is not None:
            written = [self.tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in new]
            found.append(("stop_string", np.array([any(s in text for s in config.stop_strings) for text in written])))
        for criterion in self.call.stopping_criteria:
            ids = np.concatenate([np.broadcast_to(prompt, (len(new), len(prompt))), new], axis=1)
            says = np.asarray(criterion(ids, tuple(self.scores) if config.output_scores else None), bool)
            if says.shape not in ((), (len(new),)):
                raise UserError(
                    f"a stopping_criteria returned shape {says.shape}; needed: one boolean, or {len(new)}, one a "
                    "candidate of the beams"
                )
            found.append(("stopping_criteria", np.broadcast_to(says, len(new))))
        found.append(("length", np.full(len(new), last)))
        ended = np.zeros(len(new), np.int8)
        for reason, hits in reversed(found):  # the first one counts
            ended[hits] = REASONS.index(reason)
        return ended


def beam_output(
    ids: np.ndarray, waves: Sequence[BeamWave], found: Sequence[Beams], timings: Timings
) -> np.ndarray | GenerateOutput:
    """Put the waves' prompts together again. ids: the prompts [B, n]; found: the texts of each."""
    config = waves[0].call.config
    kept = [beams.take(np.arange(config.num_return_sequences)) for beams in found]
    new = [row[row >= 0] for beams in kept for row in beams.tokens]
    sequences = join(np.repeat(ids, config.num_return_sequences, axis=0), new, config.padding)
    if not config.return_dict_in_generate:
        return sequences
    width = sequences.shape[1] - ids.shape[1]
    steps = max(wave.texts.steps for wave in waves)

    def joined(of: Callable[[BeamWave], list[np.ndarray]]) -> tuple[np.ndarray, ...]:
        blanks = [np.zeros((len(wave.texts), wave.engine.vocab_size), np.float32) for wave in waves]
        return tuple(
            np.concatenate(
                [of(w)[step] if step < len(of(w)) else blank for w, blank in zip(waves, blanks, strict=True)]
            )
            for step in range(steps)
        )

    first_rows = [config.num_beams * index for index in range(len(kept))]
    came_from = [np.where(b.came_from < 0, -1, b.came_from + row) for b, row in zip(kept, first_rows, strict=True)]
    return GenerateOutput(
        sequences,
        tuple(REASONS[code] or "length" for beams in kept for code in beams.ended),
        tuple(map(len, new)),
        timings,
        scores=joined(lambda wave: wave.scores) if config.output_scores else None,
        logits=joined(lambda wave: wave.logits) if config.output_logits else None,
        logprobs=_stacked([beams.logprobs for beams in kept], width, 0) if config.output_logprobs else None,
        sequences_scores=np.concatenate([beams.scores for beams in kept]),
        beam_indices=_stacked(came_from, width, -1),
    )


def _stacked(parts: Sequence[np.ndarray], width: int, filler: int) -> np.ndarray:
    """[n, steps] each, cut or filled up to `width` columns, one below another."""
    return np.concatenate(
        [np.pad(p[:, :width], ((0, 0), (0, max(0, width - p.shape[1]))), constant_values=filler) for p in parts]
    )
