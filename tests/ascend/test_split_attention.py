"""SplitAttention and JoinAttention on the stand-in of each chip against kernels.reference; the share of the cores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.kernels import reference
from edgellama.kernels.ascend import standin
from edgellama.kernels.ascend.chips import CHIPS as CHIP_TABLE

CHIPS = tuple(CHIP_TABLE)
TOLERANCE = 2e-3  # of float16 results near 1


@dataclass(frozen=True)
class Case:
    """Sizes of one call; it has one row for each start."""

    start: tuple[int, ...]
    length: tuple[int, ...]
    tokens: int
    capacity: int
    parts: int
    groups: int = 2
    ratio: int = 3
    head_dim: int = 64
    window: int = 0

    def inputs(self) -> dict[str, np.ndarray]:
        """Returns random inputs. Cache positions without a token are NaN, because no result may depend on them."""
        random = np.random.default_rng((*self.start, self.tokens, self.ratio, self.head_dim))
        rows, half = len(self.start), self.head_dim // 2
        angles = np.outer(np.arange(self.capacity), 10000.0 ** (-np.arange(half) / half))
        caches = random.standard_normal((2, rows, self.groups, self.capacity, self.head_dim)).astype(np.float16)
        for row, start in enumerate(self.start):
            caches[:, row, :, start:] = np.nan
        width = self.groups * (self.ratio + 2) * self.head_dim
        return {
            "qkv": random.standard_normal((rows, self.tokens, width)).astype(np.float16),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
            "start": np.array(self.start, np.int32),
            "length": np.array(self.length, np.int32),
            "k_cache": caches[0],
            "v_cache": caches[1],
        }


def same_records(found: np.ndarray, expected: np.ndarray, case: Case) -> None:
    """Compares the maxima, the sums of the weights, and the weighted sums of values, divided by the weights' sums."""
    at = [case.ratio * case.head_dim, case.ratio * (case.head_dim + 8)]
    (sums, top, weights), (want, highest, total) = (np.split(x, at, axis=-1) for x in (found, expected))
    np.testing.assert_allclose(top, highest, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(weights, total, rtol=TOLERANCE, atol=TOLERANCE)
    scale = np.repeat(np.maximum(total[..., ::8], 1), case.head_dim, axis=-1)
    np.testing.assert_allclose(sums / scale, want / scale, rtol=TOLERANCE, atol=TOLERANCE)


def check(case: Case, chip: str, constant: bool = False) -> None:
    """Compares both operators with their definitions, and their result with that of the undivided attention."""
    attributes = {"heads": case.groups * case.ratio, "scale": case.head_dim**-0.5, "window": case.window}
    whole, defined, found = case.inputs(), case.inputs(), case.inputs()
    want = reference.fused_attention(**whole, **attributes)
    expected = reference.split_attention(**defined, **attributes, parts=case.parts)
    out, partial = standin.split_attention(**found, **attributes, parts=case.parts, chip=chip, constant=constant)
    if case.tokens == 1:
        same_records(partial, expected[1], case)
    for cache in ("k_cache", "v_cache"):
        np.testing.assert_allclose(defined[cache], whole[cache], rtol=0)
        np.testing.assert_allclose(found[cache], whole[cache], rtol=TOLERANCE, atol=1e-3)
    defined_join = reference.join_attention(*expected)
    np.testing.assert_allclose(defined_join.astype(np.float32), want.astype(np.float32), rtol=TOLERANCE, atol=TOLERANCE)
    joined = standin.join_attention(out, partial, chip=chip, constant=constant)
    np.testing.assert_allclose(joined.astype(np.float32), want.astype(np.float32), rtol=TOLERANCE, atol=TOLERANCE)
    if case.tokens > 1:
        np.testing.assert_array_equal(joined, out)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("head_dim", "ratio", "parts"), [(64, 3, 4), (128, 8, 2), (16, 1, 8), (256, 2, 3), (80, 9, 5)])
def test_decode(chip: str, head_dim: int, ratio: int, parts: int) -> None:
    """Rows of a long and a short cache, of an empty one, at the edges of a part, and an empty row."""
    case = Case((999, 0, 1, 16 * parts, 63, 5), (1, 1, 1, 1, 1, 0), 1, 1024, parts, 1, ratio, head_dim)
    check(case, chip)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("window", [1, 16, 300, 2000])
def test_a_window(chip: str, window: int) -> None:
    check(Case((700, 40, 0), (1, 1, 1), 1, 1024, 4, window=window), chip)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("tokens", [2, 20])
def test_a_prefill_passes_through(chip: str, tokens: int) -> None:
    check(Case((700, 3, 0), (tokens, 1, 0), tokens, 1024, 4), chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_a_long_result_is_copied_in_chunks(chip: str) -> None:
    out = np.random.default_rng(0).standard_normal((1, 300, 1040)).astype(np.float16)
    partial = np.zeros((1, 5, 2, 13 * (16 + 16)), np.float32)
    np.testing.assert_array_equal(standin.join_attention(out, partial, chip=chip), out)


@pytest.mark.parametrize("chip", CHIPS)
def test_with_the_tiling_as_a_constant(chip: str) -> None:
    check(Case((300,), (1,), 1, 512, 2, groups=1), chip, constant=True)


@pytest.mark.parametrize("chip", CHIPS)
def test_rows_that_leave_the_cache_are_zero(chip: str) -> None:
    case = Case((0, 3, 9), (1, 1, 1), 1, 32, 2)
    found = case.inputs()
    found["start"][:] = [-1, 40, 32]
    out, partial = standin.split_attention(**found, heads=6, scale=0.1, parts=2, chip=chip)
    np.testing.assert_array_equal(standin.join_attention(out, partial, chip=chip), np.zeros_like(out))
    for cache in ("k_cache", "v_cache"):
        np.testing.assert_array_equal(found[cache].view(np.uint16), case.inputs()[cache].view(np.uint16))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    tokens = data.draw(st.sampled_from([1, 1, 1, 3]))
    capacity = data.draw(st.integers(tokens, 300))
    length = tuple(data.draw(st.lists(st.integers(0, tokens), min_size=1, max_size=3)))
    start = tuple(data.draw(st.integers(0, capacity - n)) if n else 0 for n in length)
    numbers = st.integers(2, 9), st.integers(1, 3), st.integers(1, 9)  # parts, groups, ratio
    sizes = data.draw(st.tuples(*numbers, st.sampled_from([16, 48, 144])))
    case = Case(start, length, tokens, capacity, *sizes, window=data.draw(st.sampled_from([0, 0, 30])))
    check(case, data.draw(st.sampled_from(CHIPS)))


# --- the share of the cores ---


@pytest.mark.parametrize("chip", CHIPS)
def test_decode_uses_every_core(chip: str) -> None:
    """From 8 key/value heads and one row down to 2, and for 24 and 48 heads, no core waits for more than a tenth."""
    cores = CHIP_TABLE[chip].vector_cores
    for heads in (2, 3, 4, 8, 24, 48):
        for context in (4096, 8192):
            parts = CHIP_TABLE[chip].attention_parts(heads, context)
            shape = [1, 1, heads * 6 * 128, heads * 4, heads, 128, context, context, 0]
            operator, split = ("split_attention", [parts]) if parts > 1 else ("fused_attention", [])
            plan = standin.plan(chip, operator, shape + split, 0.1)
            busiest = -(-heads * parts // plan.workers)
            least = min(-(-heads * n // cores) / n for n in range(1, context // 256 + 1))
            assert plan.workers == min(cores, heads * parts) and busiest / parts <= 1.1 * least
            # of the ideal, all cores busy to the end, where the parts are not too short for it
            assert heads / cores / (busiest / parts) >= (0.8 if heads * context // 256 >= cores else 0.4)


def test_parts_are_few() -> None:
    """No part has fewer than 256 positions, and a split that gains less than a tenth is not made."""
    for chip in CHIP_TABLE.values():
        for heads in (1, 2, 3, 8, 40, 1000):
            for positions in (1, 255, 511, 512, 5000):
                assert 1 <= chip.attention_parts(heads, positions) <= max(1, positions // 256)
    assert CHIP_TABLE["ascend310p"].attention_parts(8, 8192) == 1
    assert all(CHIP_TABLE["ascend310b"].attention_parts(heads, 8192) == 1 for heads in (1, 2, 8))  # it has one core


@pytest.mark.parametrize("chip", CHIPS)
def test_every_head_that_export_takes_fits_with_parts(chip: str) -> None:
    limits, most = standin.limits(chip), CHIP_TABLE[chip].max_query_heads
    for dim in range(16, 257, 16):
        for ratio in (1, most(dim)):
            shape = [1, 1, (ratio + 2) * dim, ratio, 1, dim, 4096, 4096, 0, 64]
            assert standin.plan(chip, "split_attention", shape, 0.1, limits).ub_bytes <= limits[0]
            assert standin.plan(chip, "join_attention", [1, 1, ratio * dim, 1, 64, ratio * (dim + 16)]).workers == 1


@pytest.mark.parametrize(
    ("operator", "shape", "message"),
    [
        ("split_attention", [1, 1, 320, 3, 1, 64, 64, 64, 0, 1], "SplitAttention: parts is 1; it must be 2 to 64"),
        ("split_attention", [1, 1, 320, 3, 1, 64, 64, 64, 0, 65], "SplitAttention: parts is 65; it must be 2 to 64"),
        ("join_attention", [0, 1, 192, 1, 2, 240], "JoinAttention: out has 0 rows of 1 tokens"),
        (
            "join_attention",
            [1, 1, 192, 1, 2, 232],
            "JoinAttention: out is 192 wide, partial has 1 heads of 2 records of",
        ),
        ("join_attention", [1, 1, 192, 5, 2, 240], "SplitAttention does not write these"),
    ],
)
def test_tiling_refuses(operator: str, shape: list[int], message: str) -> None:
    with pytest.raises(standin.TilingError, match=message):
        standin.plan("ascend310p", operator, shape, 0.1)
