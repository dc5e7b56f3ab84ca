"""Speculative decoding gives the tokens of plain decoding; hidden states and logits are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgellama import LlamaForCausalLM
from edgellama.engine.engine_lock import Cancelled
from edgellama.errors import UserError
from edgellama.generation.speculative import Pace
from support.exported import CONTEXT, export_tiny, tiny_checkpoint

WORDS = [72, 101, 108, 108, 111, 32]
REPEATING = WORDS * 3 + [84, 104, 101] + WORDS


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(export_tiny("cpu"), threads=2)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a guess at every step: whether guesses pay depends on the time, which no test measures."""
    monkeypatch.setattr(Pace, "length", lambda self: self._next)


def run(model: LlamaForCausalLM, prompt: list[int], guess: int | None, **settings: Any) -> Any:
    settings = {"eos_token_id": [], "max_new_tokens": 30, "return_dict_in_generate": True, **settings}
    return model.generate([prompt], prompt_lookup_num_tokens=guess, output_logprobs=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"max_length": CONTEXT, "max_new_tokens": None},
        {"do_sample": True, "temperature": 0.3, "seed": 3},
        {"do_sample": True, "top_k": 3, "seed": 4, "repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 4},
        {"repetition_penalty": 0.5},
        {"max_matching_ngram_size": 1},
        {"bad_words_ids": [[108]]},
    ],
    ids=str,
)
@pytest.mark.parametrize("guess", [1, 4, 50])
def test_tokens_are_those_of_plain_decoding(model: LlamaForCausalLM, guess: int, settings: dict[str, Any]) -> None:
    plain, guessed = run(model, REPEATING, None, **settings), run(model, REPEATING, guess, **settings)
    assert guessed.sequences.tolist() == plain.sequences.tolist()
    assert guessed.logprobs.tobytes() == plain.logprobs.tobytes()
    assert guessed.finish_reasons == plain.finish_reasons
    new = guessed.new_tokens[0]
    assert guessed.timings.decode_steps + guessed.timings.accepted_tokens == new - 1
    assert 0 <= guessed.timings.accepted_tokens <= guessed.timings.guessed_tokens


def test_repeated_text_takes_fewer_passes(model: LlamaForCausalLM) -> None:
    """A bias makes the model repeat the text, so that guesses are right."""
    repeat = {"sequence_bias": {(a, b): 1000.0 for a, b in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True) if a != 108}}
    repeat["sequence_bias"] |= {(101, 108, 108): 2000.0, (108, 108, 111): 2000.0}
    plain, guessed = run(model, WORDS * 3, None, **repeat), run(model, WORDS * 3, 7, **repeat)
    assert guessed.sequences.tolist() == plain.sequences.tolist()
    assert guessed.timings.decode_steps < plain.timings.decode_steps / 3
    assert guessed.timings.accepted_tokens > 20


@pytest.mark.parametrize("ends", range(1, 9))
def test_ends_inside_a_checked_pass(model: LlamaForCausalLM, ends: int) -> None:
    """An eos id, or a stopping criterion, that a right guess fulfils."""
    whole = run(model, REPEATING, None).sequences[0].tolist()
    eos = whole[len(REPEATING) + ends - 1]
    for settings in ({"eos_token_id": [eos]}, {"stopping_criteria": lambda ids, scores: ids.shape[1] == 27 + ends}):
        plain, guessed = run(model, REPEATING, None, **settings), run(model, REPEATING, 7, **settings)
        assert guessed.sequences.tolist() == plain.sequences.tolist()
        assert guessed.finish_reasons == plain.finish_reasons


def test_the_cache_stays_correct(model: LlamaForCausalLM) -> None:
    """What wrong guesses left in the cache is not taken for the text that follows."""
    first = run(model, REPEATING, 7, max_new_tokens=9).sequences[0].tolist()
    reused = run(model, [*first, 65], None, reuse_prefix=True, max_new_tokens=8)
    assert reused.timings.cached_tokens > 0
    fresh = run(model, [*first, 65], None, max_new_tokens=8)
    assert reused.sequences.tolist() == fresh.sequences.tolist()


def test_streams_and_cancels(model: LlamaForCausalLM) -> None:
    settings = {"eos_token_id": [], "max_new_tokens": 30}
    plain = [piece.id for piece in model.stream(REPEATING, **settings)]
    stream = model.stream(REPEATING, prompt_lookup_num_tokens=7, **settings)
    assert [piece.id for piece in stream] == plain
    stream = model.stream(REPEATING, prompt_lookup_num_tokens=7, **settings)
    seen = [next(stream).id for _ in range(5)]
    stream.cancel()
    rest = list(stream)
    assert (seen + [piece.id for piece in rest if piece.id is not None])[:5] == plain[:5]
    assert rest[-1].finish_reason == "cancelled"


@pytest.mark.parametrize("count", [1, 2, 8, 15, 16, 17, 40])
def test_logits_of_every_position(model: LlamaForCausalLM, count: int) -> None:
    """Two rows of different lengths, in buckets of 1, 4 and 16 tokens, against transformers."""
    theirs = reference_of_tiny()
    rng = np.random.default_rng(count)
    tokens = rng.integers(0, 256, (2, count))
    lengths = np.array([count, max(1, count - 3)])
    engine = model.engine
    with engine.engine_lock.take():
        hidden = engine.hidden(tokens, np.zeros(2, int), lengths)
        logits = [engine.head.logits(hidden[row, :length]) for row, length in enumerate(lengths)]
        last = engine.forward(tokens, np.zeros(2, int), lengths).copy()
    assert not hidden[1, lengths[1] :].any()
    for row, length in enumerate(lengths):
        with torch.no_grad():
            want = theirs(torch.tensor(tokens[row : row + 1, :length]), output_hidden_states=True)
        spread = float(want.logits.max() - want.logits.min())
        np.testing.assert_allclose(logits[row], want.logits[0].numpy(), rtol=0, atol=1e-5 * spread)
        np.testing.assert_allclose(
            engine.head.normalised(hidden[row, :length]), want.hidden_states[-1][0].numpy(), rtol=0, atol=1e-4
        )
        np.testing.assert_allclose(logits[row][-1], last[row], rtol=0, atol=1e-6 * spread)


def reference_of_tiny() -> Any:
    from transformers import LlamaForCausalLM as Theirs

    return Theirs.from_pretrained(tiny_checkpoint()).eval()


def test_few_tokens_have_the_bits_of_single_steps(model: LlamaForCausalLM) -> None:
    engine = model.engine
    tokens = np.random.default_rng(0).integers(0, 256, (2, 20))
    zeros, ones = np.zeros(2, int), np.ones(2, int)
    with engine.engine_lock.take():
        engine.forward(tokens[:, :12], zeros, 12 * ones)
        single = [engine.forward(tokens[:, i : i + 1], i * ones, ones).copy() for i in range(12, 20)]
        hidden = engine.hidden(tokens[:, 12:], 12 * ones, 8 * ones)
    for row in range(2):
        logits = engine.head.logits(hidden[row])
        assert logits.tobytes() == np.stack([step[row] for step in single]).tobytes()


def test_a_cancelled_pass_keeps_its_chunks(model: LlamaForCausalLM) -> None:
    engine = model.engine
    tokens = np.full((2, 40), 65)
    answers = iter([False, True])
    with engine.engine_lock.take(), pytest.raises(Cancelled):
        engine.hidden(tokens, np.zeros(2, int), np.array([40, 0]), lambda: next(answers))
    assert len(engine.prefixes.row(0)) == 16
    with engine.engine_lock.take():  # the request for hidden states has ended: logits are logits again
        assert engine.forward(tokens[:, :1], np.zeros(2, int), np.ones(2, int)).any()


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        ([WORDS, WORDS], {}, "one sequence at a time, and this call has 2"),
        ([WORDS], {"num_return_sequences": 2, "do_sample": True}, "this call has 2"),
        ([WORDS], {"num_beams": 2}, "does not go with num_beams"),
    ],
)
def test_what_does_not_go_together(model: LlamaForCausalLM, prompts: Any, settings: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model.generate(prompts, prompt_lookup_num_tokens=3, max_new_tokens=4, **settings)


def test_other_targets_are_refused(tiny_artifact: Path) -> None:
    portable = LlamaForCausalLM.from_pretrained(tiny_artifact)
    with pytest.raises(UserError, match=r"portable.*last token only.*TARGET=cpu"):
        portable.generate([WORDS], prompt_lookup_num_tokens=3)
