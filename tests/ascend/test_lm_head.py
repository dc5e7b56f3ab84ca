"""Compiles LmHead of kernels/ascend from its source for the stand-in of each chip; compares with kernels.reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.kernels import reference
from edgellama.kernels.ascend import standin
from edgellama.kernels.ascend.chips import CHIPS as CHIP_TABLE

CHIPS = tuple(CHIP_TABLE)


def check(
    chip: str, rows: int, hidden: int, vocabulary: int, chip_limits: list[int] | None = None, constant: bool = False
) -> None:
    """Compares every logit with the definition."""
    random = np.random.default_rng((rows, hidden, vocabulary))
    x = (random.standard_normal((rows, hidden)) * 4).astype(np.float16)
    weight = random.standard_normal((vocabulary, hidden)).astype(np.float16)
    found = standin.lm_head(x, weight, chip=chip, chip_limits=chip_limits, constant=constant)
    wanted = reference.lm_head(x, weight)
    assert found.dtype == wanted.dtype == np.float32
    bound = 1e-5 * reference.lm_head(np.abs(x), np.abs(weight))
    assert (np.abs(found - wanted) <= bound).all()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 130])
@pytest.mark.parametrize(("hidden", "vocabulary"), [(16, 16), (64, 272), (576, 4096 + 16), (2048, 640)])
def test_lm_head(chip: str, rows: int, hidden: int, vocabulary: int) -> None:
    check(chip, rows, hidden, vocabulary)


@pytest.mark.parametrize("chip", CHIPS)
def test_with_the_tiling_as_a_constant(chip: str) -> None:
    check(chip, 2, 64, 272, constant=True)


@pytest.mark.parametrize("chip", CHIPS)
def test_a_wide_hidden_state(chip: str) -> None:
    check(chip, 1, 4096, 272)


@settings(max_examples=30, deadline=None)
@given(chip=st.sampled_from(CHIPS), rows=st.integers(1, 40), hidden=st.integers(1, 20), vocabulary=st.integers(1, 100))
def test_any_shape(chip: str, rows: int, hidden: int, vocabulary: int) -> None:
    check(chip, rows, 16 * hidden, 16 * vocabulary)


@pytest.mark.parametrize("chip", CHIPS)
def test_logits_that_float16_cannot_separate(chip: str) -> None:
    """Two logits near 20 differ by 1/1024, a sixteenth of float16's step at 20."""
    x = np.zeros((1, 32), np.float16)
    x[0, :2] = 1
    weight = np.zeros((16, 32), np.float16)
    weight[4:6, 0] = 20
    weight[5, 1] = 1 / 1024
    logits = standin.lm_head(x, weight, chip=chip)
    assert logits.argmax() == 5 and logits[0, 5] - logits[0, 4] == np.float32(1 / 1024)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("rows", "hidden", "vocabulary"), [(1, 4096, 128256), (8, 576, 49152), (1, 3584, 152064)])
def test_plans_for_real_models_fill_the_chip(chip: str, rows: int, hidden: int, vocabulary: int) -> None:
    """For Llama 3 8B, SmolLM2-135M and Qwen2.5-7B, every vector core has columns, and none has twice as many."""
    ub, _, _, _, _, cube, vector, _ = standin.limits(chip)
    plan = standin.plan(chip, "lm_head", [rows, hidden, vocabulary])
    columns = plan.details[0]
    assert plan.tiling.nbytes % 8 == 0 and plan.ub_bytes < ub and plan.blocks <= cube and plan.workers <= vector
    assert columns % 16 == 0 and vocabulary <= columns * plan.workers < vocabulary + vector * 128


@pytest.mark.parametrize("chip", CHIPS)
def test_blocks_follow_the_chip_s_memory(chip: str) -> None:
    ub, l1, l0a, l0b, l0c, *cores = standin.limits(chip)
    check(chip, 20, 256, 1024, [ub, l1, l0a // 4, l0b // 4, l0c, *cores])
    if chip == "ascend310p":  # Matmul needs unified buffer for twice its largest block, here 128 columns of K
        with pytest.raises(standin.TilingError, match="a block of 16 x 128 does not fit the chip's local memory"):
            standin.plan(chip, "lm_head", [1, 256, 49152], chip_limits=[72 * 1024, l1, l0a, l0b, l0c, *cores])
        standin.plan(chip, "lm_head", [1, 256, 49152], chip_limits=[80 * 1024, l1, l0a, l0b, l0c, *cores])
    with pytest.raises(standin.TilingError, match="a block of 32 x 128 does not fit the chip's local memory"):
        standin.plan(chip, "lm_head", [20, 256, 49152], chip_limits=[ub, l1, l0a, l0b, 1024, *cores])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([0, 64, 64], "x has 0 rows; it needs at least 1"),
        ([1, 72, 64], "the hidden size 72 is not a multiple of 16 up to 65535"),
        ([1, 65536, 64], "the hidden size 65536 is not a multiple of 16 up to 65535"),
        ([1, 64, 264], "the vocabulary of 264 is not a multiple of 16"),
    ],
)
def test_tiling_refuses(shape: list[int], message: str) -> None:
    with pytest.raises(standin.TilingError, match=f"^LmHead: {message}$"):
        standin.plan("ascend310b", "lm_head", shape)
