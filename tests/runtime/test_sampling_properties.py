"""Compares sampling with transformers and with the definitions, for scores of any number and with any ties."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgellama.generation.config import GenerationConfig
from edgellama.generation.sampler import Sampler
from support.distributions import assert_same_scores, softmax
from support.their_processors import their_warpers

FE_DFL_ENV = ctypes.c_void_p(-1)  # of glibc's fenv.h


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """Resets the floating-point mode: loading MindSpore Lite makes a thread flush subnormal numbers to zero."""
    ctypes.CDLL(None).fesetenv(FE_DFL_ENV)


ELEMENTS = st.one_of(st.integers(-3, 3), st.floats(-40, 40, width=32), st.just(-np.inf))


@given(
    scores=arrays(
        np.float32,
        st.integers(1, 200),
        elements=ELEMENTS,
    ),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    top_k=st.integers(0, 250),
    min_p=st.sampled_from([None, 0.0, 0.03, 0.4, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_the_same_tokens_stay_as_in_transformers(
    scores: np.ndarray, temperature: float, top_k: int, min_p: float | None
) -> None:
    assume(np.isfinite(scores).any())
    config = GenerationConfig(do_sample=True, temperature=temperature, top_k=top_k, min_p=min_p)
    whole = scores / np.float32(temperature)
    relative = np.exp(whole.astype(np.float64) - whole.max())
    near_limit = np.abs(relative - (min_p or 0)) < 1e-6 * (min_p or 0)
    assume(min_p in (None, 0.0, 1.0) or not near_limit.any())  # rounding decides near the limit
    expected = their_warpers(config)(torch.zeros((1, 1), dtype=torch.long), torch.tensor(scores[None])).numpy()[0]
    assert_same_scores(Sampler(config).warp(scores), expected)


@given(
    scores=arrays(
        np.float32,
        st.integers(1, 3000),
        elements=ELEMENTS,
        fill=st.floats(-40, 40, width=32),
    ),
    p=st.floats(0.01, 1.0, exclude_max=True),
    keep=st.integers(1, 5),
)
@settings(max_examples=300, deadline=None)
def test_a_nucleus_is_the_least_that_weighs_enough(scores: np.ndarray, p: float, keep: int) -> None:
    """By definition no token outside is likelier than one inside, and without its last token the sum is too small."""
    assume(np.isfinite(scores).any())
    probability = softmax(scores)
    for name in ("top_p", "typical_p"):
        inside = np.isfinite(Sampler(GenerationConfig(do_sample=True, top_k=0, **{name: p}), keep).warp(scores))
        distance = -scores.astype(np.float64)
        if name == "typical_p":
            surprise = -np.log(np.maximum(probability, 1e-300))
            distance = np.abs(surprise - (probability * surprise).sum())
        counts = np.isfinite(scores)
        assert not inside[~counts].any()
        assert inside.sum() >= min(keep, counts.sum())
        assert probability[inside].sum() >= p - 1e-5
        last = distance[inside].max()
        assert not (counts & ~inside & (distance < last - 1e-4)).any()
        nearer = inside & (distance < last - 1e-4)
        if nearer.sum() >= keep:
            assert probability[nearer].sum() < p + 1e-5
