"""Compiles the Ascend kernels from their sources for the stand-in of each chip; compares with kernels.reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import UserError
from edgellama.exporter.graph_spec import Shape
from edgellama.exporter.network.family import FAMILIES
from edgellama.exporter.opsets.ascend_model_checks import check_model
from edgellama.kernels import reference
from edgellama.kernels.ascend import standin
from edgellama.kernels.ascend.chips import CHIPS as CHIP_TABLE

CHIPS = tuple(CHIP_TABLE)
TOLERANCE = 2e-3  # of float16 results near 1


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    """Compiles the kernels for all chips at once."""
    with ThreadPoolExecutor(len(CHIPS)) as pool:
        list(pool.map(standin.load, CHIPS))


@dataclass(frozen=True)
class Case:
    """Sizes of one call; it has one row for each start."""

    start: tuple[int, ...]
    length: tuple[int, ...]
    tokens: int
    capacity: int
    groups: int = 2
    ratio: int = 3  # query heads per key/value head
    head_dim: int = 64
    window: int = 0
    size: float = 1.0  # standard deviation of the data

    def inputs(self) -> dict[str, np.ndarray]:
        """Returns random inputs. Cache positions without a token are NaN, because no result may depend on them."""
        random = np.random.default_rng(abs(hash((self.start, self.length, self.tokens, self.ratio, self.head_dim))))
        rows, half = len(self.start), self.head_dim // 2
        width = self.groups * (self.ratio + 2) * self.head_dim
        angles = np.outer(np.arange(self.capacity + 3), 10000.0 ** (-np.arange(half) / half))
        caches = random.standard_normal((2, rows, self.groups, self.capacity, self.head_dim)).astype(np.float16)
        for row, start in enumerate(self.start):
            caches[:, row, :, start:] = np.nan
        return {
            "qkv": (self.size * random.standard_normal((rows, self.tokens, width))).astype(np.float16),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
            "start": np.array(self.start, np.int32),
            "length": np.array(self.length, np.int32),
            "k_cache": caches[0],
            "v_cache": caches[1],
        }

    @property
    def attributes(self) -> dict[str, float]:
        return {"heads": self.groups * self.ratio, "scale": self.head_dim**-0.5, "window": self.window}


def check(case: Case, chip: str, chip_limits: list[int] | None = None, constant: bool = False) -> None:
    """Compares the kernel's output, its cache writes, and every other byte of the caches with the definition."""
    expected, got = case.inputs(), case.inputs()
    want = reference.fused_attention(**expected, **case.attributes)
    out = standin.fused_attention(**got, **case.attributes, chip=chip, chip_limits=chip_limits, constant=constant)
    np.testing.assert_allclose(out.astype(np.float32), want.astype(np.float32), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(got["v_cache"].view(np.uint16), expected["v_cache"].view(np.uint16))
    before = case.inputs()["k_cache"]
    for row, (start, length) in enumerate(zip(case.start, case.length, strict=True)):
        written = np.zeros(case.capacity, bool)
        written[start : start + length] = True
        new, old = got["k_cache"][row], before[row]
        np.testing.assert_allclose(new[:, written], expected["k_cache"][row][:, written], rtol=TOLERANCE, atol=1e-3)
        np.testing.assert_array_equal(new[:, ~written].view(np.uint16), old[:, ~written].view(np.uint16))


def matrix_case(bucket: int, head_dim: int, ratio: int) -> Case:
    """Returns one call whose rows start at 0, 1, 63, 64 and capacity - 1 and are full, partly full or empty."""
    capacity = bucket + 130
    start = (0, 1, 63, 64, capacity - 1, 7)
    length = (bucket, max(1, bucket - 1), bucket, min(bucket, bucket // 2 + 1), 1, 0)
    return Case(start, length, bucket, capacity, groups=1 if bucket == 512 else 2, ratio=ratio, head_dim=head_dim)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("ratio", [1, 3, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("bucket", [1, 32])
def test_short_buckets(chip: str, bucket: int, head_dim: int, ratio: int) -> None:
    check(matrix_case(bucket, head_dim, ratio), chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("ratio", [1, 3, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("bucket", [128, 512])
def test_long_buckets(chip: str, bucket: int, head_dim: int, ratio: int) -> None:
    check(matrix_case(bucket, head_dim, ratio), chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_a_long_bucket_in_several_tiles(chip: str) -> None:
    check(Case((5,), (130,), 130, 200, groups=1, ratio=8), chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_decode_of_a_cache_shorter_than_a_split(chip: str) -> None:
    check(Case((0, 1, 63, 64, 129, 7), (1, 1, 1, 1, 1, 0), 1, 130, ratio=4), chip)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("window", [1, 5, 16, 64, 200])
def test_sliding_window(chip: str, window: int) -> None:
    check(Case((100, 0, 63), (40, 40, 11), 40, 160, window=window), chip)
    check(Case((159, 0, 70), (1, 1, 1), 1, 160, window=window), chip)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("head_dim", "ratio"), [(16, 1), (48, 2), (80, 5), (256, 2), (128, 32)])
def test_other_head_sizes(chip: str, head_dim: int, ratio: int) -> None:
    check(Case((30, 0), (20, 17), 20, 64, groups=1, ratio=ratio, head_dim=head_dim), chip)
    check(Case((30, 0), (1, 1), 1, 64, groups=1, ratio=ratio, head_dim=head_dim), chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_large_scores_do_not_overflow(chip: str) -> None:
    check(Case((40, 3), (1, 1), 1, 64, size=10.0), chip)


@pytest.mark.parametrize("chip", CHIPS)
def test_tiles_follow_the_chip_s_memory(chip: str) -> None:
    """With a smaller unified buffer the tiling uses smaller tiles, and the results are the same."""
    real = standin.limits(chip)
    small = [90 * 1024, *real[1:]]
    prefill = Case((9, 70), (50, 33), 50, 128, head_dim=128)
    decode = Case((9, 2040), (1, 1), 1, 2048, groups=1, ratio=8, head_dim=128)
    for case in (prefill, decode):
        heads, groups, capacity = case.groups * case.ratio, case.groups, case.capacity
        shape = [2, case.tokens, (heads + 2 * groups) * 128, heads, groups, 128, capacity, capacity, 0]
        tight, wide = (standin.plan(chip, "fused_attention", shape, 0.1, limits) for limits in (small, real))
        assert tight.ub_bytes <= small[0] < wide.ub_bytes
        check(case, chip, chip_limits=small)
    for l0c in (24 * 1024, 40 * 1024):  # both products share it; the wider one decides
        for head_dim in (64, 192):
            shape = [1, 512, 6 * head_dim, 4, 1, head_dim, 4096, 4096, 0]
            keys, queries = standin.plan(chip, "fused_attention", shape, 0.1, [*real[:4], l0c, *real[5:]]).details[:2]
            assert queries * (keys + head_dim) * 4 <= l0c


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("tokens", [1, 24])
def test_rows_that_leave_the_cache_are_left_alone(chip: str, tokens: int) -> None:
    """start and length come from device memory. Values out of range must not change another row's memory."""
    case = Case((0, 3, 2, 9), (tokens,) * 4, tokens, 32)
    got = case.inputs()
    before = case.inputs()
    got["start"][:] = [-1, 40, 3, 32]
    got["length"][:] = [tokens, tokens, -1, tokens]
    out = standin.fused_attention(**got, **case.attributes, chip=chip)
    np.testing.assert_array_equal(out, np.zeros_like(out))
    for cache in ("k_cache", "v_cache"):
        np.testing.assert_array_equal(got[cache].view(np.uint16), before[cache].view(np.uint16))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_with_the_tiling_as_a_constant(chip: str, tokens: int) -> None:
    """CANN compiles the gears of a graph in this form; there the other kernel of the source has no tiling at all."""
    check(Case((30, 0), (tokens, min(tokens, 17)), tokens, 64, ratio=4), chip, constant=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    chip = data.draw(st.sampled_from(CHIPS))
    tokens = data.draw(st.sampled_from([1, 2, 5, 17, 40]))
    capacity = data.draw(st.integers(tokens, tokens + 90))
    length = tuple(data.draw(st.lists(st.integers(0, tokens), min_size=1, max_size=3)))
    start = tuple(data.draw(st.integers(0, capacity - n)) if n else 0 for n in length)
    case = Case(
        start,
        length,
        tokens,
        capacity,
        groups=data.draw(st.integers(1, 3)),
        ratio=data.draw(st.integers(1, 9)),
        head_dim=data.draw(st.sampled_from([16, 32, 48, 64, 80, 144])),
        window=data.draw(st.sampled_from([0, 0, 3, 20])),
    )
    check(case, chip)


# --- tiling ---

SHAPE = {
    "rows": 1,
    "tokens": 32,
    "width": 5 * 64,
    "heads": 3,
    "groups": 1,
    "head_dim": 64,
    "capacity": 128,
    "positions": 128,
    "window": 0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 4, "groups": 3}, "4 query heads are not a multiple of 3 key/value heads"),
        ({"heads": 33}, "33 query heads share a key/value head; at most 32 can"),
        ({"head_dim": 72}, "head size 72 is not a multiple of 16 up to 256"),
        ({"head_dim": 272}, "head size 272 is not a multiple of 16 up to 256"),
        ({"width": 321}, r"qkv is 321 wide, \(heads \+ 2 \* key/value heads\) \* head size is 320"),
        ({"capacity": 31}, "the cache holds 31 positions, fewer than the 32 tokens of this bucket"),
        ({"positions": 127}, "the rotary tables have 127 positions, the cache 128"),
        ({"window": -1}, "window is -1"),
        ({"rows": 0}, "0 rows of 32 tokens"),
    ],
)
def test_tiling_refuses_what_the_kernels_cannot_do(change: dict[str, int], message: str) -> None:
    with pytest.raises(standin.TilingError, match=f"^FusedAttention: .*{message}"):
        standin.plan("ascend310p", "fused_attention", list((SHAPE | change).values()), 0.125)


@pytest.mark.parametrize("chip", CHIPS)
def test_one_token_takes_the_decode_kernel_and_more_take_the_prefill_kernel(chip: str) -> None:
    keys = [
        standin.plan(chip, "fused_attention", list((SHAPE | {"tokens": tokens}).values()), 0.125).key
        for tokens in (1, 2, 32)
    ]
    assert keys == [1, 2, 2]  # ATTENTION_KEY_DECODE, ATTENTION_KEY_PREFILL


@pytest.mark.parametrize("chip", CHIPS)
def test_the_workspace_holds_what_cann_skips_and_what_the_kernel_needs(
    chip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in gives a kernel the workspace without the bytes that CANN's generated wrapper skips."""
    case = Case((5,), (40,), 40, 64)
    check(case, chip)
    facts, plan = CHIP_TABLE[chip], standin.plan

    def library_only(*arguments: Any) -> standin.TilingPlan:
        """Returns a plan that reserves what GetLibApiWorkSpaceSize says, and not what the wrapper skips."""
        plan_ = plan(*arguments)
        kernel = plan_.workspace_bytes - max(facts.library_workspace, facts.skipped_workspace)
        assert kernel > 0
        return replace(plan_, workspace_bytes=kernel + facts.library_workspace)

    monkeypatch.setattr(standin, "plan", library_only)
    if facts.library_workspace < facts.skipped_workspace:
        with pytest.raises(standin.StandInError, match=r"\[bounds\]"):
            check(case, chip)
    else:
        check(case, chip)


def test_tiling_refuses_what_does_not_fit() -> None:
    shape = list((SHAPE | {"heads": 32, "head_dim": 256, "width": 34 * 256}).values())
    with pytest.raises(standin.TilingError, match="no tile of head size 256 with 32 query heads"):
        standin.plan("ascend910b", "fused_attention", shape, 0.1)


# What the checks read besides sizes.
LLAMA = {"family": FAMILIES["llama"], "attn_logit_softcapping": None, "rope_scaling": None}


def refused_at_export(chip: str, ratio: int, head_dim: int) -> bool:
    config = SimpleNamespace(num_attention_heads=ratio, num_key_value_heads=1, head_dim=head_dim, **LLAMA)
    try:
        check_model(config, Shape(1, 512, 4096, "fp16", "float16", chip), (1, 512))  # type: ignore[arg-type]
    except UserError:
        return True
    return False


@pytest.mark.parametrize("chip", CHIPS)
def test_export_refuses_the_heads_that_the_tiling_refuses(chip: str) -> None:
    """Checks every head size and number of query heads. The plan refuses what Matmul's tiling would refuse."""
    limits = standin.limits(chip)
    for head_dim in range(16, 257, 16):
        for ratio in range(1, 33):
            shapes = [[1, n, (ratio + 2) * head_dim, ratio, 1, head_dim, 4096, 4096, 0] for n in (1, 2, 32, 512)]
            try:
                for shape in shapes:
                    standin.plan(chip, "fused_attention", shape, 0.1, limits)
                problem = ""
            except standin.TilingError as error:
                problem = str(error)
            assert refused_at_export(chip, ratio, head_dim) == bool(problem), (head_dim, ratio, problem)


def test_export_names_a_target_that_takes_the_heads() -> None:
    config = SimpleNamespace(num_attention_heads=32, num_key_value_heads=1, head_dim=256, **LLAMA)
    shape = Shape(1, 32, 64, "fp16", "float16", "ascend910b")
    message = r"at head size 256 .* Ascend 910B take up to 22. Export with TARGET=ascend310b$"
    with pytest.raises(UserError, match=message):
        check_model(config, shape, (1, 32))  # type: ignore[arg-type]
    check_model(config, replace(shape, chip="ascend310b"), (1, 32))  # type: ignore[arg-type]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("tokens", [1, 32, 128, 512])
def test_plans_for_real_models_fill_the_chip(chip: str, tokens: int) -> None:
    """For Llama 3 8B, TinyLlama and SmolLM2-135M, every core that can have work has some, and local memory suffices."""
    ub, _, _, _, _, cube, vector, _ = standin.limits(chip)
    for heads, groups, dim in ((32, 8, 128), (32, 4, 64), (9, 3, 64)):
        width = (heads + 2 * groups) * dim
        plan = standin.plan(chip, "fused_attention", [1, tokens, width, heads, groups, dim, 2048, 2048, 0], dim**-0.5)
        assert plan.ub_bytes <= ub and plan.tiling.nbytes % 8 == 0
        assert plan.workers <= vector and plan.blocks <= (vector if tokens == 1 else cube)
        assert plan.workers >= min(vector, groups)
        if tokens > 1:
            keys, queries = plan.details[:2]
            assert keys == 128 and queries >= min(64, tokens * heads // groups)
