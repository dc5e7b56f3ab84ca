"""The performance model: its times against the counts, its page, and the speed that the kernels must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellama.kernels.ascend import costs, model, standin
from edgellama.kernels.ascend.chips import CHIPS as CHIP_TABLE
from edgellama.kernels.ascend.speeds import SPEEDS
from edgellama.kernels.ascend.standin_library import PIPES

CHIPS = tuple(CHIP_TABLE)
PAGE = Path(model.__file__).with_name("MODEL.md")


def decode(chip: str, **given: float) -> standin.Timed:
    """Runs decode with 300 cached positions; all costs are 0 but the given ones."""
    random = np.random.default_rng(0)
    table = np.zeros((len(costs.COSTS), 2))
    for name, cost in given.items():
        table[list(costs.COSTS).index(name)] = cost, 2 * cost
    counted = standin.Timed(table)
    standin.fused_attention(
        random.standard_normal((1, 1, 5 * 64)).astype(np.float16),
        *np.ones((2, 301, 32), np.float32),
        np.array([300], np.int32),
        np.array([1], np.int32),
        *random.standard_normal((2, 1, 1, 301, 64)).astype(np.float16),
        heads=3,
        scale=0.125,
        chip=chip,
        counted=counted,
    )
    return counted


def test_each_cost_is_counted_on_its_pipe() -> None:
    """With one cost at a time, a pipe works for the number of its events times the cost."""
    chip = "ascend310b"
    for name, pipe, events in (
        ("vector_instruction", "vector", ["vector_instructions"]),
        ("vector_repeat", "vector", ["vector_repeats"]),
        ("copy_burst", "mte2", ["load_bursts", "cube_bursts"]),
        ("load_byte", "mte2", ["load_bytes"]),
        ("store_byte", "mte3", ["store_bytes"]),
        ("operand_byte", "mte2", ["cube_bytes"]),
        ("cube_fractal", "cube", ["cube_fractals"]),
        ("dispatch", "scalar", []),
    ):
        found = decode(chip, **{name: 3.0})
        [counts] = found
        want = 3.0 * sum(counts[event] for event in events)
        if name == "dispatch":  # of every instruction, whatever its pipe
            assert found.cycles[0, PIPES.index(pipe), 0] > 3.0 * counts["vector_instructions"]
            continue
        np.testing.assert_allclose(found.cycles[0, PIPES.index(pipe)], [want, 2 * want])


def test_a_kernel_takes_as_long_as_its_chain() -> None:
    """At least as long as its busiest pipe, at most as long as all of them in turn; loads overlap with arithmetic."""
    [cycles] = decode("ascend310p", vector_repeat=1.0, load_byte=0.04).cycles
    work, end = cycles[:-1], cycles[-1]
    assert (end >= work.max(0)).all() and (end < work.sum(0)).all()
    assert (end < work.max(0) + 0.5 * np.sort(work, 0)[-2]).all()  # the tiles are double-buffered


def test_a_barrier_waits_for_the_latency() -> None:
    """Without a cost of the instructions, a chain of dependent ones takes the latency of each."""
    [counts] = (found := decode("ascend310p", vector_latency=10.0))
    assert (found.cycles[0, :-1] == 0).all()
    chain = found.cycles[0, -1, 0] / 10.0
    assert counts["vector_barriers"] <= chain + 8 and chain <= counts["vector_instructions"]


@pytest.mark.parametrize("chip", CHIPS)
def test_the_clock_follows_from_the_published_flops(chip: str) -> None:
    """CANN's platform files state 1,080 MHz for the 310P and up to 1,850 for the 910B; the 200I DK A2 has 500 MHz."""
    low, high = {"ascend310p": (1.0e9, 1.1e9), "ascend310b": (0.48e9, 1.3e9), "ascend910b": (1.6e9, 1.85e9)}[chip]
    for board in CHIP_TABLE[chip].boards:
        assert low <= costs.clock(CHIP_TABLE[chip], board) <= high


@pytest.mark.parametrize("chip", CHIPS)
def test_a_board_s_bandwidth_is_shared_by_its_cores(chip: str) -> None:
    for board in CHIP_TABLE[chip].boards:
        table = dict(zip(costs.COSTS, costs.cycles(CHIP_TABLE[chip], board), strict=True))
        rate = CHIP_TABLE[chip].cube_cores * costs.clock(CHIP_TABLE[chip], board) / table["operand_byte"]
        np.testing.assert_allclose(rate, board.bandwidth)
        assert all((low <= high) for low, high in table.values())


def test_the_page_has_the_tables_of_the_model() -> None:
    """If a kernel or a cost changes: `python -m edgellama.kernels.ascend.model --write`."""
    lines = PAGE.read_text(encoding="utf-8").partition("\n## Decode")[0].splitlines()
    assert [line for line in lines if line.startswith("|")] == [*model.cost_rows(), *model.rows()]


# The least share of the bandwidth at the high end of all costs: decode of 1,024 positions with head size 64, and of
# 4,096 with head size 128; LmHead of one row.
LEAST = {"ascend310p": (0.36, 0.52, 0.6), "ascend310b": (0.5, 0.7, 0.55), "ascend910b": (0.38, 0.8, 0.55)}


@pytest.mark.parametrize(("target", "name"), model.BOARDS)
@pytest.mark.parametrize("ratio", [1, 8])
def test_decode_keeps_its_speed(target: str, name: str, ratio: int) -> None:
    chip, board = model.board(target, name)
    for positions, head_dim, least in ((1024, 64, LEAST[target][0]), (4096, 128, LEAST[target][1])):
        worst, best = sorted(model.attention(chip, board, 1, positions - 1, ratio, head_dim).shares)
        assert least <= worst <= best <= 1


@pytest.mark.parametrize(("target", "name"), model.BOARDS)
def test_the_head_keeps_its_speed(target: str, name: str) -> None:
    chip, board = model.board(target, name)
    worst, best = sorted(model.lm_head(chip, board, 1, 2048, 1024).shares)
    assert LEAST[target][2] <= worst <= best <= 1


@pytest.mark.parametrize(("target", "name"), model.BOARDS)
def test_the_speeds_of_plan_are_those_of_the_model(target: str, name: str) -> None:
    """The shares of the page's tables are within the ranges, and the ranges are no wider than the model needs."""
    chip, board = model.board(target, name)
    table = PAGE.read_text(encoding="utf-8").partition("\n## Times\n")[2].partition("\n## ")[0]
    lines = table.partition(f": {name}**")[2].partition("| **")[0].splitlines()
    for kernel, (least, most) in (("decode", SPEEDS[target].decode), ("LmHead", SPEEDS[target].matrix)):
        shares = [line.split("|")[-2].split(" to ") for line in lines if line.startswith(f"| {kernel}")]
        low, high = min(float(one[0]) for one in shares), max(float(one[1]) for one in shares)
        assert least <= low < high <= most
        assert low - least < 0.25 and most - high < 0.25  # the 310B's boards differ by that much
    for tokens, start, ratio, dim in ((128, 0, 4, 64), (128, 1000, 4, 128)):
        found = model.attention(chip, board, tokens, start, ratio, dim, heads=1)
        seen, each = sum(range(start + 1, start + tokens + 1)), chip.vector_cores // chip.cube_cores
        flops = (board.flops or 0) / chip.cube_cores
        shares_of_flops = [4 * seen * ratio * dim * each / one / flops for one in found.seconds]
        assert SPEEDS[target].prefill[0] <= min(shares_of_flops) and max(shares_of_flops) <= SPEEDS[target].prefill[1]
