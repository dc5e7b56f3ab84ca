"""The performance model: how long a kernel takes on a chip, by the instructions that the stand-in counts.

The stand-in runs the kernel, and adds the costs of its instructions along their order (standin/standin/clock.h). One
cube core runs with its vector cores, while all cores share the memory's bandwidth. `python -m
edgellama.kernels.ascend.model` (`make kernels-model`) prints every kernel, chip and shape. These are estimates: no
board has been measured.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..ascend_format import panel_bytes
from ..reference import Array
from ..weight_format import PANEL
from . import costs, standin
from .chips import CHIPS, Board, Chip
from .standin_library import PIPES

PIPE_NAMES = {"scalar": "scalar", "vector": "vector", "cube": "cube", "mte2": "load", "mte3": "store"}
# Of each chip the boards whose ratios of clock and bandwidth differ most.
BOARDS = (
    ("ascend310p", "Atlas 300I Pro, 24 GB"),
    ("ascend310b", "OrangePi AIpro 8T, 16 GB"),
    ("ascend310b", "Atlas 200I A2 20T, 12 GB"),
    ("ascend910b", "Atlas 800I A2 64 GB, a chip"),
)
POSITIONS, RATIOS, HEAD_DIMS = (1024, 4096), (1, 3, 4, 8), (64, 128)


@dataclass(frozen=True)
class Estimate:
    """The time of a kernel, and why.

    Attributes:
        seconds: the low and the high end
        pipes: the same of the work of each pipe of the busiest core, by the names in PIPE_NAMES
        needed: bytes that any kernel for this work must move
        bandwidth: bytes a second that these cores get of the board's memory
    """

    seconds: tuple[float, float]
    pipes: dict[str, tuple[float, float]]
    needed: int
    bandwidth: float

    @property
    def shares(self) -> tuple[float, float]:
        """The share of the bandwidth that the kernel uses, at the low and the high end of the costs."""
        low, high = (self.needed / (seconds * self.bandwidth) for seconds in self.seconds)
        return low, high

    @property
    def bottleneck(self) -> str:
        """The pipe with the most work at the high end; "waiting", if the chain of waits takes half as long again."""
        busiest = max(self.pipes, key=lambda pipe: self.pipes[pipe][1])
        return busiest if self.pipes[busiest][1] > self.seconds[1] / 1.5 else "waiting"


def board(target: str, name: str) -> tuple[Chip, Board]:
    """Return a chip and one of its boards."""
    chip = CHIPS[target]
    return chip, next(one for one in chip.boards if one.name == name)


def timed(chip: Chip, on: Board, run: Callable[[list[int], standin.Timed], object], needed: int) -> Estimate:
    """Run a kernel on one cube core with its vector cores, and return its estimate.

    Args:
        run: calls a function of standin.py with these chip_limits and this `counted`
        needed: as in Estimate, of these cores
    """
    each = chip.vector_cores // chip.cube_cores
    limits = [*standin.limits(chip.target)[:5], 1, each, chip.arch]
    counted = standin.Timed(costs.cycles(chip, on))
    run(limits, counted)
    work, ends = counted.cycles[:, :-1] / costs.clock(chip, on), counted.cycles[:, -1] / costs.clock(chip, on)
    cube = work[:, PIPES.index("cube")]
    busy = work.max(0)
    if chip.split_cores:  # the vector cores share one cube core, which serves them in turn
        busy[PIPES.index("cube")] = cube.sum(0)
    seconds = np.maximum(ends.max(0), busy.max(0))
    named = {PIPE_NAMES[pipe]: (float(one[0]), float(one[1])) for pipe, one in zip(PIPES, busy, strict=True)
             if pipe in PIPE_NAMES}  # fmt: skip
    bandwidth = (on.bandwidth or 0) / chip.cube_cores
    return Estimate((float(seconds[0]), float(seconds[1])), named, needed, bandwidth)


def attention(chip: Chip, on: Board, tokens: int, start: int, ratio: int, head_dim: int, heads: int = 0) -> Estimate:
    """Estimate FusedAttention of one row with `heads` key/value heads for each vector core.

    Args:
        tokens, start: new tokens, and those that the cache has
        ratio: query heads per key/value head
        heads: 0 is one; eight, a row of most models, on a chip with one core
    """
    heads = heads or (8 if chip.vector_cores == 1 else 1)
    random = np.random.default_rng(0)
    groups = heads * (chip.vector_cores // chip.cube_cores)
    capacity = start + tokens
    tables = np.ones((capacity, head_dim // 2), np.float32)
    caches = random.standard_normal((2, 1, groups, capacity, head_dim)).astype(np.float16)
    qkv = random.standard_normal((1, tokens, groups * (ratio + 2) * head_dim)).astype(np.float16)

    def run(limits: list[int], counted: standin.Timed) -> Array:
        at, length = np.array([start], np.int32), np.array([tokens], np.int32)
        return standin.fused_attention(
            qkv, tables, tables, at, length, *caches,
            heads=groups * ratio, scale=0.1, chip=chip.target, chip_limits=limits, counted=counted,
        )  # fmt: skip

    needed = 2 * groups * head_dim * (2 * start + tokens * (ratio * 2 + 2))
    return timed(chip, on, run, needed)


def lm_head(chip: Chip, on: Board, rows: int, hidden: int, columns: int) -> Estimate:
    """Estimate LmHead.

    Args:
        columns: of the vocabulary, for one cube core
    """
    x, weight = np.ones((rows, hidden), np.float16), np.ones((columns, hidden), np.float16)

    def run(limits: list[int], counted: standin.Timed) -> Array:
        return standin.lm_head(x, weight, chip=chip.target, chip_limits=limits, counted=counted)

    return timed(chip, on, run, weight.nbytes)


def quant_linear(chip: Chip, on: Board, rows: int, inputs: int, columns: int, bits: int) -> Estimate:
    """Estimate QuantLinear with groups of 32 inputs.

    Args:
        columns: for one cube core
    """
    x = np.ones((rows, inputs), np.float16)
    weight = np.zeros((columns // PANEL, panel_bytes(bits, 32, inputs)), np.uint8)

    def run(limits: list[int], counted: standin.Timed) -> Array:
        return standin.quant_linear(
            x, weight, bits=bits, group=32, chip=chip.target, chip_limits=limits, counted=counted
        )

    return timed(chip, on, run, weight.nbytes)


def cases(chip: Chip, on: Board) -> Iterator[tuple[str, Estimate]]:
    """Yield each kernel and shape with its estimate."""
    for positions in POSITIONS:
        for head_dim in HEAD_DIMS:
            for ratio in RATIOS:
                name = f"decode, {positions:,} positions, head size {head_dim}, {ratio} query heads"
                yield name, attention(chip, on, 1, positions - 1, ratio, head_dim)
    yield "prefill of 128, head size 64, 4 query heads", attention(chip, on, 128, 0, 4, 64)
    yield "LmHead, 1 row, hidden size 2,048", lm_head(chip, on, 1, 2048, 1024)
    for bits in (8, 4):
        for tokens in (1, 3, 32):
            name = f"QuantLinear, {bits} bits, {tokens} row{'s' * (tokens > 1)}, 4,096 inputs"
            yield name, quant_linear(chip, on, tokens, 4096, 256, bits)


def cost_rows() -> Iterator[str]:
    """Yield the lines of the table of costs, in Markdown."""
    yield "| cost | low | high | source |"
    yield "| --- | --- | --- | --- |"
    for name, cost in costs.COSTS.items():
        if cost is not None:
            cells = name.replace("_", " "), f"{cost.low:.3g} {cost.unit}", f"{cost.high:.3g} {cost.unit}", cost.source
            yield f"| {' | '.join(cells)} |"
    for name, port in costs.PORTS.items():
        share = "or the core's share of the board's bandwidth"
        yield f"| {name.replace('_', ' ')} | 1/{port} cycles | {share} | {costs.PTO} |"


def rows() -> Iterator[str]:
    """Yield the lines of the table of times, in Markdown."""
    yield "| kernel and shape | " + " | ".join(["time, us", *PIPE_NAMES.values(), "bottleneck", "bandwidth"]) + " |"
    yield "| --- |" + " --- |" * (len(PIPE_NAMES) + 3)
    for target, name in BOARDS:
        chip, on = board(target, name)
        yield f"| **{chip.name}: {name}** |" + " |" * (len(PIPE_NAMES) + 3)
        for case, found in cases(chip, on):
            spans = [found.seconds, *(found.pipes[pipe] for pipe in PIPE_NAMES.values())]
            cells = [f"{low * 1e6:.0f} to {high * 1e6:.0f}" for low, high in spans]
            best, worst = found.shares
            yield " | ".join([f"| {case}", *cells, found.bottleneck, f"{worst:.2f} to {best:.2f} |"])


def write(page: Path) -> None:
    """Replace the tables of a page, which are below the titles Costs and Times."""
    text = page.read_text(encoding="utf-8")
    for title, lines in (("\n## Costs\n", cost_rows()), ("\n## Times\n", rows())):
        before, _, after = text.partition(title)
        table = re.search(r"(^\|.*\n)+", after, flags=re.MULTILINE)
        if table is None:
            raise ValueError(f"{page.name} has no table below {title.strip()}")
        after = after[: table.start()] + "".join(f"{line}\n" for line in lines) + after[table.end() :]
        text = before + title + after
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Print the table of times, or write both tables into MODEL.md."""
    parser = argparse.ArgumentParser(description="Prints the estimated time of the Ascend kernels, for one cube core.")
    parser.add_argument("--write", action="store_true", help="write the tables of MODEL.md instead")
    if parser.parse_args().write:
        write(Path(__file__).with_name("MODEL.md"))
    else:
        for row in rows():
            print(row, flush=True)


if __name__ == "__main__":
    main()
