"""Compares logits processors and warpers with transformers' on random scores, and draws with the distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from edgellama.errors import UserError
from edgellama.generation.config import GenerationConfig
from edgellama.generation.logits_processors import processors, without_eos
from edgellama.generation.sampler import NotNumbersError, Sampler
from edgellama.kernels.cpu.library import available_isas
from support.distributions import assert_same_scores, chi_square, softmax
from support.their_processors import their_processors, their_warpers

ROWS = 3
PLAIN = GenerationConfig(do_sample=True, top_k=0)
EDGE = float(np.nextafter(1.0, 0.0))  # the largest random number
EOS = (1, 5)
# Flat and peaked rows, small and large vocabularies: nuclei from one token to nearly all tokens.
SHAPES = [(7, 1.0), (300, 2.0), (5000, 0.3), (49152, 3.0), (20000, 8.0)]

WARPERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6, "top_k": 0},
    "top_k": {"top_k": 40},
    "top_k 1": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 10**6},
    "top_p": {"top_p": 0.9, "top_k": 0},
    "top_p small": {"top_p": 0.01, "top_k": 0},
    "top_p wide": {"top_p": 0.995, "top_k": 0},
    "min_p": {"min_p": 0.1, "top_k": 0},
    "min_p 0": {"min_p": 0.0, "top_k": 0},
    "min_p 1": {"min_p": 1.0, "top_k": 0},
    "typical_p": {"typical_p": 0.9, "top_k": 0},
    "typical_p small": {"typical_p": 0.2, "top_k": 0},
    "llama 3": {"temperature": 0.6, "top_p": 0.9, "top_k": 0},
    "usual": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
    "flat": {"temperature": 1.5, "min_p": 0.05, "top_k": 0},
    "all": {"temperature": 1.3, "top_k": 200, "top_p": 0.97, "min_p": 0.001, "typical_p": 0.95},
    "top_h": {"top_h": 0.5, "temperature": 0.9, "top_k": 0},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-4, "top_k": 0},
    "epsilon_cutoff above all": {"epsilon_cutoff": 0.9, "top_k": 0},
    "eta_cutoff": {"eta_cutoff": 2e-3, "temperature": 1.2, "top_k": 0},
    "rare settings": {"top_h": 0.8, "top_k": 30, "top_p": 0.95, "epsilon_cutoff": 1e-3, "eta_cutoff": 2e-3},
}
BANNED = [[3], [1], [4, 2], [2, 3, 4]]
BIAS = {(2,): 3.5, (6,): -2.0, (3, 4): 5.0, (2, 4): 1.5, (4, 4, 3): float("-inf")}
PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.8},
    "no_repeat_ngram 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram 2": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram 3": {"no_repeat_ngram_size": 3},
    "no_repeat_ngram long": {"no_repeat_ngram_size": 99},
    "bad_words_ids": {"bad_words_ids": BANNED},
    "sequence_bias": {"sequence_bias": BIAS},
    "all": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": BANNED,
        "sequence_bias": BIAS,
    },
}


def warped(config: GenerationConfig, row: np.ndarray, isa: str | None = None) -> np.ndarray:
    return Sampler(config, isa=isa).warp(row)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("settings", WARPERS.values(), ids=WARPERS.keys())
def test_warpers_give_transformers_distribution(settings: dict[str, Any], isa: str) -> None:
    config = GenerationConfig(do_sample=True, **settings)
    for size, spread in SHAPES:
        rows = (np.random.default_rng(size).normal(size=(ROWS, size)) * spread).astype(np.float32)
        expected = their_warpers(config)(torch.zeros((ROWS, 1), dtype=torch.long), torch.tensor(rows)).numpy()
        assert_same_scores(np.stack([warped(config, row, isa) for row in rows]), expected)


@pytest.mark.parametrize("settings", WARPERS.values(), ids=WARPERS.keys())
def test_warpers_take_banned_tokens_and_equal_scores(settings: dict[str, Any]) -> None:
    config = GenerationConfig(do_sample=True, **settings)
    rng = np.random.default_rng(0)
    for size in (9, 6000):
        rows = rng.integers(-4, 5, (ROWS, size)).astype(np.float32)  # integers, so that many are equal
        rows[:, rng.permutation(size)[: size // 3]] = -np.inf
        expected = their_warpers(config)(torch.zeros((ROWS, 1), dtype=torch.long), torch.tensor(rows)).numpy()
        ours = np.stack([warped(config, row) for row in rows])
        # If equal scores are at a probability limit, rounding decides how many of them stay. top_h has such a limit and
        # 100 tokens, of which torch chooses the last among equals.
        if config.top_h is not None and size > 9:
            continue
        if config.top_p == 1.0:
            np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(expected))
        np.testing.assert_allclose(np.sort(softmax(ours)), np.sort(softmax(expected)), atol=2e-3, rtol=0)


def test_a_nucleus_among_nearly_equal_scores() -> None:
    row = (np.random.default_rng(0).normal(size=30_000) * 0.005).astype(np.float32)
    config = GenerationConfig(do_sample=True, top_p=0.6, top_k=0)
    order = np.argsort(row)[::-1]
    size = np.searchsorted(np.cumsum(softmax(row)[order]), 0.6) + 1
    np.testing.assert_array_equal(np.sort(order[:size]), np.flatnonzero(np.isfinite(warped(config, row))))


def test_equal_scores_alone_are_no_endless_search() -> None:
    for value in (0.0, 3.0):
        kept = warped(GenerationConfig(do_sample=True, top_p=0.5, top_k=0), np.full(10_000, value, np.float32))
        assert abs(np.isfinite(kept).sum() - 5000) <= 1


def test_beams_keep_more_than_one_token() -> None:
    row = np.array([9.0, 1.0, 0.5, 0.0], np.float32)
    for settings in ({"top_k": 1}, {"top_k": 0, "top_p": 0.1}, {"top_k": 0, "min_p": 0.9}):
        sampler = Sampler(GenerationConfig(do_sample=True, **settings), keep=3)
        np.testing.assert_array_equal(sampler.warp(row), [9.0, 1.0, 0.5, -np.inf])


@pytest.mark.parametrize("size", [9, 300, 30_000])
def test_beams_keep_the_most_typical(size: int) -> None:
    scores = (2 * np.random.default_rng(size).normal(size=size)).astype(np.float32)
    config = GenerationConfig(do_sample=True, typical_p=0.001, top_k=0)
    their = theirs.TypicalLogitsWarper(0.001, min_tokens_to_keep=5)
    expected = their(torch.zeros((1, 1), dtype=torch.long), torch.tensor(scores[None]))[0].numpy()
    assert_same_scores(Sampler(config, keep=5).warp(scores), expected)


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS.keys())
@pytest.mark.parametrize("length", [1, 2, 3, 12, 60])
def test_processors_give_transformers_scores(settings: dict[str, Any], length: int) -> None:
    config = GenerationConfig(eos_token_id=EOS, **settings)
    rng = np.random.default_rng(length)
    for size in (8, 500):
        texts = rng.integers(0, 8, (ROWS, length))
        scores = rng.normal(size=(ROWS, size)).astype(np.float32)
        expected = their_processors(config)(torch.tensor(texts), torch.tensor(scores)).numpy()
        ours = scores.copy()
        for processor in processors(config, size):
            ours = processor(list(texts), ours)
        np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(expected))
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_without_eos_is_min_new_tokens() -> None:
    scores = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    their = theirs.MinNewTokensLengthLogitsProcessor(3, 2, list(EOS))
    expected = their(torch.zeros((ROWS, 4), dtype=torch.long), torch.tensor(scores)).numpy()
    np.testing.assert_array_equal(without_eos(scores.copy(), (*EOS, -1, 99)), expected)


def test_processors_and_warpers_together_are_transformers() -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.8, top_k=20, top_p=0.9, eos_token_id=EOS, **PROCESSORS["all"]
    )
    rng = np.random.default_rng(5)
    texts = rng.integers(0, 30, (ROWS, 40))
    scores = (2 * rng.normal(size=(ROWS, 400))).astype(np.float32)
    both = theirs.LogitsProcessorList([*their_processors(config), *their_warpers(config)])
    expected = both(torch.tensor(texts), torch.tensor(scores)).numpy()
    ours = scores.copy()
    for processor in processors(config, 400):
        ours = processor(list(texts), ours)
    assert_same_scores(np.stack([warped(config, row) for row in ours]), expected)


def drawn(config: GenerationConfig, scores: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    sampler = Sampler(config)
    return np.bincount([sampler.draw(scores, 0, u) for u in uniforms], minlength=scores.size)


@pytest.mark.parametrize(("size", "count"), [(6, 20_000), (900, 40_000), (5003, 20_000)])
def test_draws_follow_the_distribution(size: int, count: int) -> None:
    rng = np.random.default_rng(size)
    scores = (2 * rng.normal(size=size)).astype(np.float32)
    scores[rng.permutation(size)[: size // 3]] = -np.inf
    counts = drawn(PLAIN, scores, rng.random(count))
    assert chi_square(counts, softmax(scores)) < 4
    skewed = softmax(scores * 0.9)
    assert chi_square(counts, skewed) > 4  # the test detects a wrong distribution


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"temperature": 1.4, "top_p": 0.6}, {"typical_p": 0.5}, {"min_p": 0.02}, {"top_k": 700}],
    ids=str,
)
def test_draws_follow_what_the_warpers_leave(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5003).astype(np.float32)
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **settings})
    expected = their_warpers(config)(torch.zeros((1, 1), dtype=torch.long), torch.tensor(scores[None])).numpy()[0]
    counts = drawn(config, scores, rng.random(20_000))
    assert chi_square(counts, softmax(expected)) < 4
    kept = np.flatnonzero(np.isfinite(expected))
    ends = np.flatnonzero(drawn(config, scores, np.array([0.0, EDGE])))
    assert set(ends) <= set(kept.tolist()) and len(ends) == 2


@pytest.mark.parametrize("isa", available_isas())
def test_a_draw_never_gives_a_banned_token(isa: str) -> None:
    wide = np.full((2, 4000), -np.inf, np.float32)
    wide[1, [5, 2000, 3999 - 5]] = 1.0
    sampler = Sampler(isa=isa)
    assert [sampler.draw(wide, 1, u) for u in (0.0, 0.3, 0.5, EDGE)] == [5, 5, 2000, 3994]
    alone = np.full(33, -np.inf, np.float32)
    alone[32] = -70.0
    for settings in (*WARPERS.values(), {}):
        sampler = Sampler(GenerationConfig(do_sample=True, **{"top_k": 0, **settings}), isa=isa)
        assert [sampler.draw(alone, 0, u) for u in (0.0, EDGE)] == [32, 32], settings


@pytest.mark.parametrize("isa", available_isas())
def test_each_token_has_its_share_of_the_numbers(isa: str) -> None:
    scores = np.random.default_rng(3).normal(size=40).astype(np.float32)
    scores[20:] = scores[:20]  # equal scores
    uniforms = (np.arange(20_000) + 0.5) / 20_000
    for settings in (
        {},
        {"top_k": 7},
        {"top_p": 0.6},
        {"top_p": 0.3},
        {"typical_p": 0.6},
        {"min_p": 0.2, "top_p": 0.9},
    ):
        sampler = Sampler(GenerationConfig(do_sample=True, **{"top_k": 0, **settings}), isa=isa)
        share = np.bincount([sampler.draw(scores, 0, u) for u in uniforms], minlength=scores.size) / len(uniforms)
        np.testing.assert_allclose(share, softmax(sampler.warp(scores)), atol=4e-3, err_msg=str(settings))


@pytest.mark.parametrize("isa", available_isas())
def test_the_likeliest_is_the_first_of_the_highest(isa: str) -> None:
    sampler = Sampler(isa=isa)
    rng = np.random.default_rng(0)
    for size in (1, 2, 31, 32, 33, 1000, 49_152):
        rows = rng.integers(-3, 4, (3, size)).astype(np.float32)
        assert [sampler.likeliest(rows, row) for row in range(3)] == rows.argmax(axis=1).tolist()
    infinite = np.array([0.0, np.inf, np.inf], np.float32)
    assert sampler.likeliest(infinite) == 1


@pytest.mark.parametrize("isa", available_isas())
def test_scores_that_are_not_numbers_are_an_error(isa: str) -> None:
    for size in (5, 64, 999):
        for place in (0, size // 2, size - 1):
            scores = np.zeros((2, size), np.float32)
            scores[1, place] = np.nan
            for settings in (*WARPERS.values(), {}):
                sampler = Sampler(GenerationConfig(do_sample=True, **settings), isa=isa)
                assert sampler.likeliest(scores, 0) == 0 and 0 <= sampler.draw(scores, 0, 0.5) < size
                for refused in (sampler.likeliest, sampler.logsumexp, lambda s, row: sampler.draw(s, row, 0.5)):  # noqa: B023
                    with pytest.raises(NotNumbersError, match="not numbers"):
                        refused(scores, 1)
                with pytest.raises(NotNumbersError, match="not numbers"):
                    sampler.warp(scores[1])
    with pytest.raises(NotNumbersError):
        Sampler(isa=isa).draw(np.array([0, np.inf], np.float32), 0, 0.5)


def test_scores_that_leave_nothing_are_an_error() -> None:
    nothing = np.full(70, -np.inf, np.float32)
    sampler = Sampler()
    for asked in (sampler.likeliest, sampler.warp, sampler.logsumexp, lambda s: sampler.draw(s, 0, 0.5)):
        with pytest.raises(UserError, match="rule out every token of the vocabulary"):
            asked(nothing)


def test_scores_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="float64; needed: float32"):
        Sampler().likeliest(np.zeros(8))


def test_log_probabilities() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32) * 10
    expected = torch.log_softmax(torch.tensor(scores[1], dtype=torch.float64), -1).numpy()
    np.testing.assert_allclose(scores[1] - Sampler().logsumexp(scores, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"temperature": 0, "do_sample": True},
            r"temperature is 0; needed: a number above 0 \(do_sample=False takes the likeliest\)",
        ),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": float("nan")}, r"temperature is nan"),
        ({"temperature": "hot"}, r"temperature is 'hot'"),
        ({"top_p": 0.0}, r"top_p is 0\.0; needed: a number above 0, at most 1"),
        ({"top_p": 1.01}, r"top_p is 1\.01"),
        ({"typical_p": 0}, r"typical_p is 0"),
        ({"min_p": 2}, r"min_p is 2"),
        ({"top_k": -1}, r"top_k is -1"),
        ({"top_k": 2.5}, r"top_k is 2\.5"),
        ({"repetition_penalty": 0}, r"repetition_penalty is 0"),
        ({"repetition_penalty": 1e-300}, r"repetition_penalty is 1e-300; needed: a number from 1e-30 to 1e30"),
        ({"length_penalty": 1e300}, r"length_penalty is 1e\+300; needed: a number from -7 to 7"),
        ({"sequence_bias": {(5,): float("nan")}}, r"sequence_bias is .*nan.*; needed"),
        ({"no_repeat_ngram_size": -2}, r"no_repeat_ngram_size is -2"),
        ({"min_new_tokens": -2}, r"min_new_tokens is -2"),
        ({"num_return_sequences": 0}, r"num_return_sequences is 0"),
        ({"seed": -1}, r"seed is -1"),
        ({"do_sample": "yes"}, r"do_sample is 'yes'"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids is \[\[\]\]"),
        ({"bad_words_ids": [1, 2]}, r"bad_words_ids is \[1, 2\]; needed: a list of lists"),
        ({"bad_words_ids": [[-1]]}, r"bad_words_ids"),
        ({"sequence_bias": {1: 2.0}}, r"sequence_bias"),
        ({"sequence_bias": [[1], 2.0]}, r"sequence_bias"),
        ({"stop_strings": ["a", ""]}, r"stop_strings"),
        ({"pad_token_id": 1.5}, r"pad_token_id is 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationConfig(**settings)


def test_lists_and_dictionaries_become_one_form() -> None:
    listed = GenerationConfig(sequence_bias=[[[1, 2], 3], [[4], -1.5]], bad_words_ids=[[1]], stop_strings="x")
    assert listed == GenerationConfig(
        sequence_bias={(1, 2): 3.0, (4,): -1.5}, bad_words_ids=((1,),), stop_strings=["x"], eos_token_id=[]
    )
    with pytest.raises(UserError, match=r"bad_words_ids holds id 9; this artifact's ids are 0\.\.7"):
        processors(GenerationConfig(bad_words_ids=[[1, 9]]), 8)
