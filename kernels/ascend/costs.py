"""What instructions cost on each chip, for the performance model: a low and a high end, with the source of each.

No chip has been measured by this project. Where public sources state a figure for one chip only, it serves for all of
them, and where they state none, the range is an assumption; the column `source` says which. Cycles are those of the
core's clock, which follows from a board's published FLOPS: a cube multiplies 16 x 16 x 16 float16 numbers in a cycle.

The model knows no DRAM efficiency: the bandwidth is the board's published peak, and the cores share it evenly. It has
no L2 cache, so data that a kernel writes and reads again counts as memory traffic. It leaves the launch out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..reference import Array
from .chips import Board, Chip

PTO = "PTO ISA, docs and include/pto/costmodel/pto_isa_costmodel.hpp (A2A3: the 910B), github.com/cannmirror/pto-isa"
COPIES = "hiascend.com, developer/techArticles/20240906-1: copies from 16 KB on come near the best bandwidth"
CUBE = "gitcode.com/cann/asc-devkit/issues/1389 and hiascend.com, atlas_ascendc_best_practices_10_10008"
GE = "github.com/hicann/ge, platform_util_stub.h, and CANN's hardware_info of the 310P: 256 bytes a cycle"
ASSUMED = "assumed: no public source states it"
MULTIPLICATIONS = 16**3  # of the cube, in a cycle


@dataclass(frozen=True)
class Cost:
    """One cost: its ends, their unit ("cycles" or "ns"), and where they come from."""

    low: float
    high: float
    unit: str
    source: str


# In the order of standin/standin/costs.h. The costs of a byte of global memory depend on the board: `cycles` adds them.
COSTS: dict[str, Cost | None] = {
    "dispatch": Cost(1, 4, "cycles", ASSUMED),
    "vector_instruction": Cost(1, 18, "cycles", f"{PTO}: the interval between instructions is 18"),
    "vector_repeat": Cost(1, 2, "cycles", f"{GE}; {PTO}: 1 or 2 a repeat"),
    "vector_latency": Cost(19, 33, "cycles", f"{PTO}: completion 19, startup 14"),
    "full_barrier": Cost(0, 50, "cycles", ASSUMED),
    "copy_instruction": Cost(10, 60, "cycles", f"{COPIES}: 60 cycles are 14 % of 16 KB at 44 bytes a cycle"),
    "copy_burst": Cost(0, 1, "cycles", f"{ASSUMED}; rows that follow one another in memory are one burst"),
    "load_byte": None,
    "store_byte": None,
    "memory_latency": Cost(150, 300, "ns", ASSUMED),
    "product_message": Cost(400, 1000, "ns", f"{CUBE}: a tenth of the scalar unit's 15 us for two messages"),
    "cube_fractal": Cost(1, 1, "cycles", "the published FLOPS are one fractal a cycle"),
    "operand_byte": None,
    "right_byte": Cost(1 / 256, 1 / 128, "cycles", f"{GE}; {PTO}: 128 bytes a cycle from L1 to L0B"),
    "result_byte": None,
}
# Bytes a cycle that one core can move, if the memory has them: PTO ISA, A2A3_BW_GM_VEC and A2A3_BW_GM_MAT.
PORTS = {"load_byte": 128, "store_byte": 128, "operand_byte": 256, "result_byte": 128}


def clock(chip: Chip, board: Board) -> float:
    """Return the cycles a second of the board's cores."""
    if board.flops is None:
        raise ValueError(f"{board.name} has no published FLOPS")
    return board.flops / (2 * MULTIPLICATIONS * chip.cube_cores)


def cycles(chip: Chip, board: Board) -> Array:
    """Return the cycles of each cost on a board with all cores at work: [COSTS, 2], the low and the high end."""
    if board.bandwidth is None:
        raise ValueError(f"{board.name} has no published bandwidth")
    hertz = clock(chip, board)
    made = np.zeros((len(COSTS), 2))
    for at, (name, cost) in enumerate(COSTS.items()):
        if cost is None:
            cores = chip.vector_cores if name in ("load_byte", "store_byte") else chip.cube_cores
            made[at] = max(1 / PORTS[name], cores * hertz / board.bandwidth)
        elif name == "product_message" and not chip.split_cores:
            made[at] = 0  # the core multiplies itself
        else:
            made[at] = np.array([cost.low, cost.high]) * (hertz / 1e9 if cost.unit == "ns" else 1)
    return made
