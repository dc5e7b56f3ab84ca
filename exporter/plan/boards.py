"""The boards that a plan compares: boards with the target's chip, or hosts with several sizes of memory."""

from __future__ import annotations

from edgellama.kernels.ascend.chips import CHIPS, GIB, SYSTEM_BYTES, Board


def _host(gib: int) -> Board:
    return Board(f"host with {gib} GB", gib * GIB, gib * GIB - SYSTEM_BYTES, assumed=("the system keeps 1.5 GB",))


HOSTS = tuple(_host(gib) for gib in (4, 8, 16, 24, 32))
BOARDS: dict[str, tuple[Board, ...]] = {  # by target
    "cpu": HOSTS,
    "portable": HOSTS,
    **{target: chip.boards for target, chip in CHIPS.items()},
}
