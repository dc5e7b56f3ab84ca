"""Beam search over the toy of tiny.py: against a plain search by whole passes, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_generation import PROMPTS, continuation, load, padded
from tiny import VOCAB, Weights, whole_text_logits

from runtime.errors import UserError
from runtime.kv_cache import KVCache
from runtime.model import GenerateOutput, LlamaForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return load(tmp_path_factory.mktemp("toy"), batch=4, eos_token_id=())


def log_probs(text: list[int]) -> np.ndarray:
    logits = whole_text_logits(Weights(64), text)[-1]
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def plain_search(prompt: list[int], beams: int, steps: int) -> list[list[int]]:
    """The `beams` likeliest of the continuations of the likeliest, step by step, without an eos."""
    texts: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(steps):
        grown = []
        for score, text in texts:
            scores = log_probs(prompt + text)
            grown += [(score + scores[i], [*text, i]) for i in range(VOCAB)]
        texts = sorted(grown, key=lambda pair: -pair[0])[:beams]
    return [text for _, text in texts]


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_without_eos_are_the_likeliest_texts(model: LlamaForCausalLM, beams: int) -> None:
    ids, mask = padded(PROMPTS, "left", 0)
    settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 6, "num_return_sequences": beams}
    got = model.generate(ids, mask, **settings)[:, ids.shape[1] :]
    expected = [text for prompt in PROMPTS for text in plain_search(prompt, beams, 6)]
    assert got.tolist() == expected
    assert [continuation(prompt, 6) for prompt in PROMPTS] != got[::beams].tolist()  # and not what greedy finds


def test_the_dictionary_holds_scores_and_reasons(model: LlamaForCausalLM) -> None:
    out = model.generate(
        [5, 6], num_beams=3, num_return_sequences=3, max_new_tokens=4, length_penalty=0.5, return_dict_in_generate=True
    )
    assert isinstance(out, GenerateOutput) and out.sequences_scores is not None
    assert out.finish_reasons == ("length",) * 3
    for row, score in zip(out.sequences.tolist(), out.sequences_scores, strict=True):
        total = sum(log_probs(row[:n])[row[n]] for n in range(2, 6))
        np.testing.assert_allclose(score, total / 4**0.5, atol=1e-5, rtol=1e-5)
    assert out.timings.prompt_tokens == 2  # prefilled once, not once a beam


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 5}, r"num_beams is 5; this artifact has 4 rows.*BATCH=5"),
        ({"num_beams": 0}, r"num_beams is 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, r"num_return_sequences is 3 and num_beams 2"),
        ({"num_beams": 2, "do_sample": True}, r"do_sample does not go with num_beams=2"),
        ({"num_beams": 2, "stop_strings": "x"}, r"stop_strings does not go"),
        ({"num_beams": 2, "streamer": object()}, r"streamer and stopping_criteria"),
        ({"num_beams": 2, "early_stopping": "soon"}, r"early_stopping is 'soon'"),
        ({"num_beams": 2, "length_penalty": "x"}, r"length_penalty is 'x'"),
    ],
)
def test_what_beam_search_does_not_take(model: LlamaForCausalLM, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.generate([5], **settings)


def test_cache_rows_change_places(model: LlamaForCausalLM) -> None:
    cache = KVCache(model.engine.cache.spec)
    rng = np.random.default_rng(0)
    before = {"k_cache.0": rng.normal(size=(4, 2, 8, 3)), "k_scale.0": rng.normal(size=(4, 2, 8))}
    cache.arrays = {name: array.copy() for name, array in before.items()}
    cache.reorder(np.array([1, 1, 0, 3]), 5)
    for name, array in cache.arrays.items():
        np.testing.assert_array_equal(array[:, :, :5], before[name][[1, 1, 0, 3], :, :5])
        np.testing.assert_array_equal(array[:, :, 5:], before[name][:, :, 5:])
