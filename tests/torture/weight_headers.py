"""The header of weights.safetensors: mutated entries, damaged bytes, wrong lengths, files cut off or too long."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from support.json_mutations import damaged, mutated
from torture.case import Case, FaultClass
from torture.forked import in_child
from torture.outcomes import Outcome


def run(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """Maps the damaged file, checks its table as the engine does, and compares every tensor."""
    from support.layered_weights import layered_weights

    good = layered_weights(shared)
    whole = good.path.read_bytes()
    for case in cases:
        path = case.folder / "weights.safetensors"
        path.write_bytes(broken(whole, case.rng))

        def load(path: Path = path) -> Outcome:
            differing = good.differing(good.checked(path))
            return Outcome("silent", f"{differing} differs") if differing else Outcome("harmless")

        yield in_child(load, names=[path.name])


def broken(whole: bytes, rng: random.Random) -> bytes:
    """Return a copy of a safetensors file with a fault in its header or its length."""
    from support.layered_weights import with_header

    start = 8 + int.from_bytes(whole[:8], "little")
    header, data = whole[8:start], whole[start:]
    kind = rng.randrange(10)
    if kind < 6:
        values = mutated(json.loads(header), rng)
        text = json.dumps(mutated(values, rng) if rng.random() < 0.2 and values else values).encode()
        return with_header(text, data)
    if kind == 6:
        return with_header(damaged(header, rng), data)
    if kind == 7:  # the length of the header
        length = rng.choice((0, 1, start - 9, start - 7, len(whole), len(whole) - 8, 1 << 31, 1 << 63, (1 << 64) - 1))
        return length.to_bytes(8, "little") + whole[8:]
    if kind == 8:
        return whole[: rng.choice((rng.randrange(len(whole)), rng.randrange(start), 0, 7, 8))]
    return whole + rng.randbytes(rng.randrange(1, 100))


CLASSES = (
    FaultClass(
        "weight-headers",
        "the header of weights.safetensors mutated or damaged, a wrong length, a file cut off or too long",
        "the file passes the checks of the engine, and every input of the graphs has the bytes of the undamaged file",
        1000,
        500,
        run,
    ),
)
