"""Reads values of the config in a manifest, which may come from a stranger: types and bounds first.

Each function raises UserError, which names the key, the value found and what is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artifact.manifest_checks import MOST_ELEMENTS
from ..errors import UserError

Config = Mapping[str, Any]  # without the keys that are null
LARGEST = 1e9  # of a multiplier or a cap, and of the inverse of one
SLIDING = "sliding_attention"


def size(config: Config, name: str) -> int:
    """Return a whole number above 0, small enough for a tensor."""
    value = config.get(name)
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 < value < MOST_ELEMENTS
    require(whole, name, value, "a positive whole number")
    return int(value or 0)


def number(config: Config, name: str, largest: float = LARGEST) -> Any:
    """Return a number above 0 as it is, since the graphs of the cpu op set hold its text."""
    value: Any = config.get(name)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 1 / LARGEST**2 <= value <= largest
    require(fits, name, value, f"a number above 0, at most {largest:,.0f}")
    return value


def flag(config: Config, *names: str) -> bool:
    """Return the first of these keys that the config has; false if it has none."""
    name = next((name for name in names if name in config), "")
    value = config.get(name, False)
    require(isinstance(value, bool), name, value, "true or false")
    return bool(value)


def choices(config: Config, name: str, kinds: tuple[object, ...], layers: int) -> list[Any]:
    """Return a list that has one of `kinds` for each layer."""
    value = config.get(name)
    listed = isinstance(value, list) and len(value) == layers and all(kind in kinds for kind in value)
    require(listed, name, value, f"a list of {layers}, each one of {', '.join(map(repr, kinds))}")
    return list(value or ())


def require(condition: bool, name: str, found: object, needed: str) -> None:
    if not condition:
        text = repr(found)
        raise UserError(
            f"config.{name} is {text if len(text) <= 80 else text[:77] + '...'} in manifest.json; needed: {needed}. "
            "Export again with this release"
        )
