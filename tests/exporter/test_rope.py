"""Compares rotary tables with transformers' LlamaRotaryEmbedding, for every kind and many parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig as HFLlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgellama.errors import UserError
from edgellama.exporter.network.config import LlamaConfig
from edgellama.exporter.network.rope import rope_frequencies, rope_tables

CONTEXT = 1024


def config(head_dim: int, theta: float, rope: dict[str, Any] | None) -> LlamaConfig:
    return LlamaConfig.from_dict(
        {
            **{"model_type": "llama", "vocab_size": 8, "hidden_size": 4 * head_dim, "intermediate_size": 8},
            **{"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": head_dim, "rms_norm_eps": 1e-5},
            **{"max_position_embeddings": CONTEXT, "rope_theta": theta, "rope_scaling": rope},
        }
    )


def assert_like_transformers(ours: LlamaConfig) -> None:
    theirs = LlamaRotaryEmbedding(HFLlamaConfig(**ours.to_dict()))
    frequency, factor = rope_frequencies(ours)
    # transformers computes in float32: a few roundings of powers and quotients, for llama3 a difference of two of them
    their_frequency = theirs.inv_freq.double().numpy()
    np.testing.assert_allclose(frequency, their_frequency, rtol=2e-5)
    assert factor == pytest.approx(theirs.attention_scaling, rel=1e-12)

    cos, sin = rope_tables(ours, CONTEXT)
    assert cos.shape == sin.shape == (CONTEXT, ours.head_dim // 2)
    assert cos.dtype == sin.dtype == np.float32
    their_cos, their_sin = theirs(torch.zeros(1), torch.arange(CONTEXT)[None])  # [1, C, D]: both halves are equal
    # angle = position * frequency: the error is that of their frequency, and one rounding to float32
    position = np.arange(CONTEXT)[:, None]
    bound = factor * (position * (abs(frequency - their_frequency) + frequency * 6e-8) + 3e-7)
    for mine, other in ((cos, their_cos), (sin, their_sin)):
        assert np.all(abs(np.concatenate([mine, mine], 1) - other[0].numpy()) <= np.concatenate([bound, bound], 1))


HEAD_DIMS = st.sampled_from([2, 6, 24, 64, 80, 128])
THETAS = st.sampled_from([500.0, 10000.0, 130000.0, 500000.0])
FACTORS = st.floats(1.0, 64.0)
ORIGINALS = st.integers(64, 8192)


@settings(deadline=None, max_examples=25)
@given(head_dim=HEAD_DIMS, theta=THETAS, kind=st.sampled_from(["default", "linear", "dynamic"]), factor=FACTORS)
def test_default_linear_dynamic(head_dim: int, theta: float, kind: str, factor: float) -> None:
    rope = None if kind == "default" else {"rope_type": kind, "factor": factor}
    if kind == "dynamic" and head_dim == 2:
        return  # transformers divides by head_dim - 2 in this case
    assert_like_transformers(config(head_dim, theta, rope))


@settings(deadline=None, max_examples=40)
@given(head_dim=HEAD_DIMS, theta=THETAS, factor=FACTORS, original=ORIGINALS, low=st.floats(1, 4), up=st.floats(1, 8))
def test_llama3(head_dim: int, theta: float, factor: float, original: int, low: float, up: float) -> None:
    rope = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original}
    assert_like_transformers(config(head_dim, theta, {**rope, "low_freq_factor": low, "high_freq_factor": low + up}))


YARN_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "attention_factor": st.floats(0.5, 2.0),
        "beta_fast": st.floats(8, 64),
        "beta_slow": st.floats(0.5, 4),
        "truncate": st.booleans(),
        "mscale": st.floats(0.1, 2.0),
        "mscale_all_dim": st.floats(0.1, 2.0),
    },
)


@settings(deadline=None, max_examples=50)
@given(head_dim=HEAD_DIMS, theta=THETAS, factor=FACTORS, original=ORIGINALS, options=YARN_OPTIONS)
def test_yarn(head_dim: int, theta: float, factor: float, original: int, options: dict[str, Any]) -> None:
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **options}
    assert_like_transformers(config(head_dim, theta, rope))


def test_far_positions_are_computed_in_float64() -> None:
    """At position 131,071 a float32 angle is wrong by up to 0.008; the table is exact to float32's last digit."""
    cos, sin = rope_tables(config(64, 10000.0, None), 131072)
    for pair in (0, 3, 10):
        angle = 131071 * 10000.0 ** (-2 * pair / 64)
        assert cos[-1, pair] == pytest.approx(math.cos(angle), abs=1e-7)
        assert sin[-1, pair] == pytest.approx(math.sin(angle), abs=1e-7)


def test_dynamic_is_refused_past_the_original_context_and_the_remedy_works() -> None:
    dynamic = config(64, 10000.0, {"rope_type": "dynamic", "factor": 4.0})
    with pytest.raises(UserError, match=rf"context {CONTEXT + 1} .*maximum of {CONTEXT} .*CONTEXT={CONTEXT}"):
        rope_tables(dynamic, CONTEXT + 1)
    default = rope_tables(config(64, 10000.0, None), CONTEXT)
    np.testing.assert_array_equal(rope_tables(dynamic, CONTEXT), default)
