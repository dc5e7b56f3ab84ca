"""Compares beam search over the toy of tiny.py with a simple search by whole passes; checks refused settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellama.engine.kv_cache import KVCache
from edgellama.errors import UserError
from edgellama.generation.output import GenerateOutput
from edgellama.model import LlamaForCausalLM
from support.distributions import chi_square, softmax
from support.tiny import VOCAB, Weights, whole_text_logits
from support.toy_model import PROMPTS, continuation, load, padded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return load(tmp_path_factory.mktemp("toy"), batch=4, eos_token_id=())


def log_probs(text: list[int]) -> np.ndarray:
    logits = whole_text_logits(Weights(64), text)[-1]
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def plain_search(prompt: list[int], beams: int, steps: int) -> list[list[int]]:
    """Returns the `beams` likeliest texts after each step extended the likeliest texts so far, without an eos."""
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
    assert [continuation(prompt, 6) for prompt in PROMPTS] != got[::beams].tolist()  # greedy finds other texts


def test_the_dictionary_holds_scores_and_reasons(model: LlamaForCausalLM) -> None:
    out = model.generate(
        [5, 6], num_beams=3, num_return_sequences=3, max_new_tokens=4, length_penalty=0.5, return_dict_in_generate=True
    )
    assert isinstance(out, GenerateOutput) and out.sequences_scores is not None
    assert out.finish_reasons == ("length",) * 3
    for row, score in zip(out.sequences.tolist(), out.sequences_scores, strict=True):
        total = sum(log_probs(row[:n])[row[n]] for n in range(2, 6))
        np.testing.assert_allclose(score, total / 4**0.5, atol=1e-5, rtol=1e-5)
    assert out.timings.prompt_tokens == 2  # prefilled once, not once per beam


def test_scores_and_log_probabilities_lead_from_beam_to_beam(model: LlamaForCausalLM) -> None:
    """Batches of two prompts; each token's score stands in the row that beam_indices names."""
    ids, mask = padded(PROMPTS[:3], "left", 0)
    out = model.generate(
        ids,
        mask,
        num_beams=2,
        num_return_sequences=2,
        max_new_tokens=4,
        repetition_penalty=1.3,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_logprobs=True,
    )
    assert out.scores is not None and len(out.scores) == 4 and out.scores[0].shape == (6, VOCAB)
    for row, (text, came_from) in enumerate(zip(out.sequences[:, ids.shape[1] :], out.beam_indices, strict=True)):
        assert (came_from // 2 == row // 2).all() and came_from[0] == row // 2 * 2
        steps = range(4)
        total = sum(out.scores[step][came_from[step], text[step]] for step in steps)
        np.testing.assert_allclose(total, out.sequences_scores[row], rtol=1e-5)
        prompt = PROMPTS[row // 2]
        own = [log_probs([*prompt, *text[:step]])[text[step]] for step in steps]
        np.testing.assert_allclose(out.logprobs[row], own, atol=1e-4)
        np.testing.assert_allclose(
            [out.logits[step][came_from[step]] for step in steps],
            [whole_text_logits(Weights(64), [*prompt, *text[:step]])[-1] for step in steps],
            atol=1e-4,
        )


def test_a_stop_string_or_a_criterion_ends_a_text(model: LlamaForCausalLM) -> None:
    settings: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 6, "return_dict_in_generate": True}
    free = model.generate([5, 6], num_return_sequences=2, **settings).sequences[:, 2:].tolist()
    word = f"w{free[0][2]}"
    # so that short texts have the best score
    out = model.generate([5, 6], stop_strings=word, length_penalty=-5.0, **settings)
    assert out.finish_reasons == ("stop_string",) and out.sequences[0, -1] == free[0][2]
    seen = []

    def criterion(ids: np.ndarray, scores: Any) -> np.ndarray:
        seen.append((ids.shape, ids[0, :2].tolist(), scores))
        return ids.shape[1] >= 5

    out = model.generate([5, 6], stopping_criteria=criterion, **settings)
    assert out.finish_reasons == ("stopping_criteria",)
    assert out.sequences[0, 2:].tolist() == plain_search([5, 6], 2, 3)[0]
    assert seen == [((4, 2 + step), [5, 6], None) for step in (1, 2, 3)]


def test_sampled_beams_are_draws_without_replacement(model: LlamaForCausalLM) -> None:
    """With one step and two beams, the result is the likelier one of two draws, in either order."""
    settings: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 1, "do_sample": True, "temperature": 4.0, "top_k": 0}
    p = softmax(whole_text_logits(Weights(64), [5, 6])[-1] / 4.0)
    pair = p[:, None] * p[None, :] / (1 - p[:, None])
    np.fill_diagonal(pair, 0)
    best = np.where(p[:, None] >= p[None, :], np.arange(VOCAB)[:, None], np.arange(VOCAB)[None, :])
    likelier = np.bincount(best.reshape(-1), pair.reshape(-1), VOCAB)
    got = model.generate([[5, 6]] * 2000, **settings, seed=0)[:, 2]
    counts = np.bincount(got, minlength=VOCAB)
    assert chi_square(counts, likelier) < 4 < chi_square(counts, p)
    again = model.generate([[5, 6]] * 2000, **settings, seed=0)[:, 2]
    np.testing.assert_array_equal(got, again)


def test_beams_go_on_where_sampling_leaves_few_tokens(model: LlamaForCausalLM) -> None:
    out = model.generate([5, 6], num_beams=3, do_sample=True, top_k=1, max_new_tokens=5, eos_token_id=[1, 2], seed=1)
    assert out.shape == (1, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 5}, r"num_beams is 5; this artifact has 4 rows.*BATCH=5"),
        ({"num_beams": 0}, r"num_beams is 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, r"num_return_sequences is 3 and num_beams 2"),
        ({"num_beams": 2, "streamer": object()}, r"a streamer does not go with num_beams"),
        ({"num_beams": 2, "stopping_criteria": lambda ids, _: [True]}, r"returned shape \(1,\); needed: one .* or 4"),
        ({"num_beams": 2, "early_stopping": "soon"}, r"early_stopping is 'soon'"),
        ({"num_beams": 2, "length_penalty": "x"}, r"length_penalty is 'x'"),
    ],
)
def test_settings_that_beam_search_refuses(model: LlamaForCausalLM, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.generate([5], **settings)


def test_cache_rows_change_places(model: LlamaForCausalLM) -> None:
    cache = KVCache()
    rng = np.random.default_rng(0)
    before = {"k_cache.0": rng.normal(size=(4, 2, 8, 3)), "k_scale.0": rng.normal(size=(4, 2, 8))}
    cache.arrays = {name: array.copy() for name, array in before.items()}
    cache.reorder(np.array([1, 1, 0, 3]), 5)
    for name, array in cache.arrays.items():
        np.testing.assert_array_equal(array[:, :, :5], before[name][[1, 1, 0, 3], :, :5])
        np.testing.assert_array_equal(array[:, :, 5:], before[name][:, :, 5:])
