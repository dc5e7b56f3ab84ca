"""Compiles QuantLinear from its source for the stand-in of each chip; compares with kernels.reference, and counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.kernels import ascend_format as packed
from edgellama.kernels import reference, weight_format
from edgellama.kernels.ascend import standin
from edgellama.kernels.ascend.chips import CHIPS as CHIP_TABLE

CHIPS = tuple(CHIP_TABLE)
VECTOR_ROWS = {"ascend310p": 3, "ascend310b": 1, "ascend910b": 3}  # of op_host/quant_linear_tiling.h


def random_weights(bits: int, group: int, n: int, k: int) -> np.ndarray:
    """Integers, scales and zero points over their whole ranges."""
    random = np.random.default_rng((bits, group, n, k))
    scales = random.uniform(0.25, 1, (n, k // group)).astype(np.float16) / 16
    if bits == 8:
        return packed.pack(8, scales, random.integers(-127, 128, (n, k)))
    zeros = random.integers(0, 65, (n, k // group)).astype(np.int8)
    return packed.pack(4, scales, random.integers(0, 16, (n, k)), zeros)


def check(
    chip: str, rows: int, k: int, n: int, bits: int, group: int, wide: int = 1, constant: bool = False,
    limits: list[int] | None = None,
) -> list[dict[str, int]]:  # fmt: skip
    """Compares every result with the definition. Returns the counts of each core."""
    x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float16)
    weight, counted = random_weights(bits, group, n, k), []
    found = standin.quant_linear(
        x, weight, bits=bits, group=group, wide=wide, chip=chip, constant=constant, chip_limits=limits, counted=counted
    )
    wanted = reference.quant_linear(x, weight, bits=bits, group=group, wide=1)
    assert found.dtype == (np.float32 if wide else np.float16)
    columns = np.linalg.norm(packed.unpack(weight, bits, group, k), axis=1)
    # The vector unit's sums are float32. For more rows, each weight is rounded to float16 (half a step in 2,048 each).
    bound = (
        (1e-5 if rows <= VECTOR_ROWS[chip] else 1e-3) * np.linalg.norm(x.astype(np.float32), axis=1)[:, None] * columns
    )
    assert (np.abs(found - wanted) <= bound + (0 if wide else np.abs(wanted) / 2048)).all()
    return counted


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 64), (8, 128), (4, 32), (4, 64), (4, 128)])
def test_rows_of_decode_and_prefill(chip: str, bits: int, group: int) -> None:
    """1,152 inputs are no whole number of tiles; with groups of 128 they are an odd number of groups."""
    for rows in (1, 2, 3, 4, 7, 16, 17, 130):
        check(chip, rows, 1152, 272, bits, group, wide=rows % 2)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    ("rows", "k", "n", "bits", "group"),
    [
        (1, 576, 1536, 4, 32),
        (2, 1536, 576, 8, 32),
        (1, 4096, 64, 4, 128),
        (1, 11008, 48, 8, 64),
        (3, 14336, 32, 4, 32),
        (1, 32, 16, 4, 32),
        (5, 14336, 32, 8, 32),
        (512, 2048, 48, 4, 64),
    ],
)
def test_sizes_of_real_models(chip: str, rows: int, k: int, n: int, bits: int, group: int) -> None:
    check(chip, rows, k, n, bits, group)


@settings(max_examples=40, deadline=None)
@given(
    chip=st.sampled_from(CHIPS),
    rows=st.integers(1, 20),
    bits=st.sampled_from(packed.BITS),
    group=st.sampled_from(packed.GROUPS),
    groups=st.integers(1, 20),
    panels=st.integers(1, 90),
    wide=st.booleans(),
)
def test_any_shape(chip: str, rows: int, bits: int, group: int, groups: int, panels: int, wide: bool) -> None:
    check(chip, rows, group * groups, 16 * panels if groups < 5 else 16, bits, group, int(wide))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(("rows", "wide"), [(1, 1), (5, 0)])
def test_with_the_tiling_as_a_constant(chip: str, rows: int, wide: int) -> None:
    check(chip, rows, 256, 48, 4, 64, wide=wide, constant=True)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("rows", [1, 16])
def test_small_integers_are_exact(chip: str, rows: int) -> None:
    """Scales that are powers of two and whole activations: every product and sum is a whole number of quarters."""
    random = np.random.default_rng(3)
    x = random.integers(-3, 4, (rows, 384)).astype(np.float16)
    scales = (0.5 ** random.integers(0, 4, (32, 12))).astype(np.float16)
    zeros = random.integers(0, 65, (32, 12)).astype(np.int8)
    for bits, weight in (
        (4, packed.pack(4, scales, random.integers(0, 16, (32, 384)), zeros)),
        (8, packed.pack(8, scales, random.integers(-127, 128, (32, 384)))),
    ):
        found = standin.quant_linear(x, weight, bits=bits, group=32, wide=1, chip=chip)
        assert np.array_equal(found, reference.quant_linear(x, weight, bits=bits, group=32, wide=1))


@pytest.mark.parametrize("chip", CHIPS)
def test_a_chip_with_less_memory_takes_smaller_tiles(chip: str) -> None:
    ub, *rest = standin.limits(chip)
    shape = [1, 2048, 64, packed.panel_bytes(4, 32, 2048), 4, 32, 0]
    large = standin.plan(chip, "quant_linear", shape)
    less = large.ub_bytes  # some bytes of the buffer stay free
    assert standin.plan(chip, "quant_linear", shape, chip_limits=[less, *rest]).ub_bytes < less < ub
    check(chip, 1, 2048, 1024, 4, 32, limits=[less, *rest])
    with pytest.raises(standin.TilingError, match="no tile fits the chip's unified buffer of 32768 bytes"):
        standin.plan(chip, "quant_linear", shape, chip_limits=[32768, *rest])


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("bits", packed.BITS)
def test_a_row_reads_the_weights_once_in_long_bursts(chip: str, bits: int) -> None:
    """Scales and zero points included. Every core has a share."""
    k, n = 2048, 16 * CHIP_TABLE[chip].vector_cores * 4
    counts = check(chip, 1, k, n, bits, 32)
    panel = packed.panel_bytes(bits, 32, k)
    for core in counts:
        assert 4 * panel <= core["load_bytes"] <= 4 * panel + 2 * k
        assert core["load_bytes"] / core["load_bursts"] >= 512
        assert core["cube_bytes"] == core["full_barriers"] == core["scalar_accesses"] == 0


@pytest.mark.parametrize(("chip", "bits", "most"), [("ascend310p", 8, 122), ("ascend310p", 4, 160)])
def test_instructions_of_a_row(chip: str, bits: int, most: float) -> None:
    """Vector repeats for 4,096 weights, as kernels/ascend/README.md states them."""
    [core, *_] = check(chip, 1, 2048, 1024, bits, 64)
    assert core["vector_repeats"] / (2048 * 1024 / 8 / 4096) < most


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 64, 1, 576, 3, 32, 0], "weights of 3 bits; this package has 4 and 8"),
        ([1, 64, 1, 576, 4, 16, 0], "groups of 16 inputs; this package has 32, 64 and 128"),
        ([1, 64, 1, 576, 4, 32, 2], "wide is 2; it is 0 or 1"),
        ([0, 64, 1, 576, 4, 32, 0], "x has 0 rows, the weight 1 panels; both need 1"),
        ([1, 96, 1, 576, 4, 64, 0], "96 inputs are not a multiple of the group of 64 up to 65535"),
        ([1, 64, 1, 512, 4, 32, 0], "a panel has 512 bytes; 64 inputs of 4 bits in groups of 32 need 608"),
    ],
)
def test_tiling_refuses(shape: list[int], message: str) -> None:
    with pytest.raises(standin.TilingError, match=f"^QuantLinear: {message}$"):
        standin.plan("ascend310b", "quant_linear", shape)


# --- the layout ---


@pytest.mark.parametrize("group", packed.GROUPS)
def test_the_layout_keeps_the_numbers_of_the_cpu_target(group: int) -> None:
    """Equal groups, equal integers: the same float32 numbers as in kernels.weight_format."""
    w = np.random.default_rng(0).standard_normal((32, 3 * group)).astype(np.float32)
    fmt = f"w4g{group}"
    scales, q, zeros = weight_format.quantize_w4(w, group)
    found = packed.unpack(packed.pack(4, scales.view(np.float16), q, zeros), 4, group, 3 * group)
    assert np.array_equal(found, weight_format.unpack(weight_format.pack(w, fmt), fmt, 32, 3 * group))


def test_each_byte_of_a_panel() -> None:
    """Two groups of 32 inputs: scales, zero points, then the integers; inputs 0 and 16 of a segment share a byte."""
    q = np.zeros((16, 64), np.uint8)
    q[3, 1], q[3, 17], q[5, 32] = 9, 6, 15
    scales = np.arange(32, dtype=np.float16).reshape(16, 2)
    panel = packed.pack(4, scales, q, np.arange(32, dtype=np.int8).reshape(16, 2))[0]
    assert np.array_equal(panel[:64].view(np.float16).reshape(2, 16), scales.T)
    assert np.array_equal(panel[64:96].reshape(2, 16), np.arange(32).reshape(16, 2).T)
    integers = panel[96:].reshape(2, 16, 16)
    assert integers[0, 1, 3] == 9 + 16 * 6 and integers[1, 0, 5] == 15 and np.count_nonzero(integers) == 2


@pytest.mark.parametrize("bits", packed.BITS)
@pytest.mark.parametrize("group", packed.GROUPS)
def test_the_size_of_a_panel_tells_its_inputs(bits: int, group: int) -> None:
    for k in range(group, 50 * group, group):
        assert packed.inputs(bits, group, packed.panel_bytes(bits, group, k)) == k
    with pytest.raises(ValueError, match="no panel"):
        packed.inputs(bits, group, packed.panel_bytes(bits, group, group) + 32 * 7)


@pytest.mark.parametrize(
    ("bits", "group", "zero", "q", "words"),
    [
        (4, 32, 65, 0, "zero points 65 to 65 quarters; needed: 0 to 64"),
        (4, 32, -1, 0, "zero points -1 to -1 quarters"),
        (4, 32, 0, 16, "integers 16 to 16; needed with 4 bits: 0 to 15"),
        (8, 32, None, -128, "integers -128 to -128; needed with 8 bits: -127 to 127"),
        (4, 16, 0, 0, "6 groups; needed"),
        (4, 32, None, 0, "needed: 4 with zeros or 8"),
    ],
)
def test_pack_refuses(bits: int, group: int, zero: int | None, q: int, words: str) -> None:
    groups = 96 // group
    zeros = None if zero is None else np.full((16, groups), zero, np.int8)
    with pytest.raises(ValueError, match=words):
        packed.pack(bits, np.ones((16, groups), np.float16), np.full((16, 96), q), zeros)
