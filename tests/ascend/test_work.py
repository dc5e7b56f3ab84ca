"""What the kernels do on each core, by the counts of the stand-in: the balance of prefill, its barriers, the counts."""

from __future__ import annotations

import numpy as np
import pytest

from edgellama.kernels.ascend import standin
from edgellama.kernels.ascend.chips import CHIPS as CHIP_TABLE

CHIPS = tuple(CHIP_TABLE)


def counts(chip: str, groups: int, tokens: int, start: int, length: int, ratio: int = 3) -> list[dict[str, int]]:
    """Runs attention with head size 64 for one row. Returns the counts of each core."""
    random, capacity = np.random.default_rng(0), 1024
    angles = np.outer(np.arange(capacity), 10000.0 ** (-np.arange(32) / 32))
    caches = random.standard_normal((2, 1, groups, capacity, 64)).astype(np.float16)
    found: list[dict[str, int]] = []
    standin.fused_attention(
        random.standard_normal((1, tokens, groups * (ratio + 2) * 64)).astype(np.float16),
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
        np.array([start], np.int32),
        np.array([length], np.int32),
        *caches,
        heads=groups * ratio,
        scale=0.125,
        chip=chip,
        counted=found,
    )
    return found


@pytest.mark.parametrize(
    ("chip", "groups", "tokens", "start", "length", "most"),
    [
        ("ascend310p", 3, 512, 0, 512, 1.35),  # SmolLM2's heads
        ("ascend310p", 3, 256, 700, 200, 1.2),
        ("ascend910b", 8, 256, 0, 256, 1.5),
    ],
)
def test_prefill_gives_every_core_about_the_same_work(
    chip: str, groups: int, tokens: int, start: int, length: int, most: float
) -> None:
    """The busiest core, compared with the mean. By the number of items, the first two were 1.64 and 1.38."""
    work = [core["cube_fractals"] for core in counts(chip, groups, tokens, start, length)]
    assert len(work) == CHIP_TABLE[chip].vector_cores and min(work) > 0
    assert max(work) <= most * sum(work) / len(work)


@pytest.mark.parametrize("chip", CHIPS)
def test_prefill_has_few_full_barriers(chip: str) -> None:
    """One step has two products. Unified cores wait three times per step, split cores once, and all once per tile."""
    for core in counts(chip, 1, 64, 900, 64):
        steps, tiles = core["products"] // 2, core["full_barriers"]
        tiles -= steps * (1 if CHIP_TABLE[chip].split_cores else 3)
        assert core["products"] % 2 == 0 and 0 <= tiles <= 4 and steps >= 7 * tiles


@pytest.mark.parametrize("chip", CHIPS)
def test_decode_reads_the_cache_once_in_long_bursts(chip: str) -> None:
    """Of one key/value head with 1,000 positions: the keys and values, 128 bytes each, as operands of the cube."""
    core, *idle = counts(chip, 1, 1, 1000, 1)
    cache, tail, weights = 2 * 992 * 128, 2 * 16 * 128, 3 * (992 + 16) * 2
    assert core["cube_bytes"] == cache + tail + weights + 2 * 3 * 64 * 2  # and the queries, for both matrices of keys
    assert core["products"] == 4 and core["cube_bytes"] / core["cube_bursts"] > 4096
    assert core["full_barriers"] == (4 if CHIP_TABLE[chip].split_cores else 2)
    # Of 3 x 1,008 scores, padded to 3 x 1,024: about seven passes of 48 repeats. The vector unit took 4,000 before.
    assert core["vector_repeats"] < 600
    assert all(one["vector_repeats"] < 100 and one["products"] == 0 for one in idle)


@pytest.mark.parametrize("chip", CHIPS)
def test_the_head_reads_its_matrix_in_rows_of_a_block(chip: str) -> None:
    """Matmul reads 256 bytes at a time. On the 310P it needs the vector unit for that; without, it reads 32."""
    random, found = np.random.default_rng(0), []
    x, weight = (random.standard_normal((n, 1024)).astype(np.float16) for n in (1, 1600))
    standin.lm_head(x, weight, chip=chip, counted=found)
    read, bursts = (sum(core[name] for core in found) for name in ("cube_bytes", "cube_bursts"))
    assert read == (1600 + len([core for core in found if core["products"]])) * 1024 * 2
    assert read / bursts == 256


def test_prefill_on_the_310p_reads_rows() -> None:
    """Rows of 64 float16 numbers, 128 bytes, and of the softmax's weights, which may be shorter."""
    for core in counts("ascend310p", 3, 256, 700, 256):
        assert core["cube_bytes"] / core["cube_bursts"] >= 100
