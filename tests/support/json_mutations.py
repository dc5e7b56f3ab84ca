"""Mutates JSON values and damages bytes, from a seeded random generator."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD = (
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    1 << 31,
    1 << 63,
    -(1 << 70),
    1.5,
    1e300,
    "",
    "x",
    "../x",
    "a\0b",
    [],
    [1],
    {},
    {"a": 1},
)
INSERTED = (b"[" * 100_000, b'{"a":' * 2000, b"\xff\xfe", b"NaN", b"1e999", b"9" * 5000, b'"\\ud800"')


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every value within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def mutated(value: Any, rng: random.Random) -> Any:
    """Returns a copy with one value replaced, removed, renamed, doubled or moved."""
    changed = copy.deepcopy(value)
    path = rng.choice(places(changed)[1:])
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    key, old = path[-1], parent[path[-1]]
    kind = rng.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(old, int) and not isinstance(old, bool):
        parent[key] = old + rng.choice((-64, -1, 1, 64, 1 << 20))
    elif kind == 2 and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(rng.choice(parent)))
    elif kind == 3 and isinstance(parent, dict):
        parent[rng.choice([*parent, "other", "x" * 3000])] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))
    return changed


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Returns a copy with a bit flipped, some bytes removed, the end cut off, or something odd inserted."""
    changed = bytearray(data)
    at = rng.randrange(len(changed))
    kind = rng.randrange(5)
    if kind < 2:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del changed[at : at + rng.randrange(1, 50)]
    elif kind == 3:
        del changed[at:]
    else:
        changed[at:at] = rng.choice(INSERTED)
    return bytes(changed)
