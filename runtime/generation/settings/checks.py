"""Checks of settings: each takes the name and the value of a setting, and returns the value in its normal form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np

from ...errors import UserError, shown

LARGEST = (1 << 63) - 1  # of a whole number: native code takes int64
Check = Callable[[str, Any], Any]  # name, value -> the value in its normal form; raises UserError


def whole(least: int) -> Check:
    """Return the check for a whole number, at least `least`."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= LARGEST:
            raise UserError(f"{name} is {shown(value)}; needed: a whole number, at least {least}")
        return int(value)

    return check


def number(needed: str, fits: Callable[[float], bool]) -> Check:
    """Return the check for a finite number that `fits` accepts; `needed` describes it."""

    def check(name: str, value: Any) -> float:
        found = math.nan
        if isinstance(value, Real) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer that no float can hold
                found = float(value)
        if not math.isfinite(found) or not fits(found):
            raise UserError(f"{name} is {shown(value)}; needed: {needed}")
        return found

    return check


def or_none(check: Check) -> Check:
    """Return the check that accepts None too."""
    return lambda name, value: None if value is None else check(name, value)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise UserError(f"{name} is {shown(value)}; needed: True or False")
    return bool(value)


def early_stopping(name: str, value: Any) -> bool | str:
    """True, False or "never"."""
    if not isinstance(value, bool) and value != "never":
        raise UserError(f'{name} is {shown(value)}; needed: True, False or "never"')
    return value


def id_list(name: str, value: Any) -> tuple[int, ...]:
    """One id, or a list of them."""
    try:
        ids = np.atleast_1d(np.asarray(value, np.int64 if np.size(value) == 0 else None))
    except ValueError:  # lists of different lengths
        ids = np.empty((0, 0))
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.size and ids.max() > LARGEST):
        raise UserError(f"{name} is {shown(value)}; needed: a token id or a list of them")
    return tuple(int(i) for i in ids)


def id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """[[id, ...], ...] as tuples."""
    try:
        rows = [list(row) for row in value]
    except TypeError:
        rows = [[]]
    ids = [i for row in rows for i in row]
    whole = all(isinstance(i, Integral) and not isinstance(i, bool) and 0 <= int(i) <= LARGEST for i in ids)
    if not all(rows) or not whole:
        raise UserError(f"{name} is {shown(value)}; needed: a list of lists of token ids, none of them empty")
    return tuple(tuple(int(i) for i in row) for row in rows)


def biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, ...): bias}, or [[[id, ...], bias], ...]."""
    pairs: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    try:
        ids, values = zip(*pairs, strict=True) if value else ((), ())
        numbers = [float(number) for number in values]
        if any(math.isnan(number) for number in numbers):
            raise ValueError("not a number")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} is {shown(value)}; needed: {{(id, ...): bias}} or a list of [[id, ...], bias]"
        ) from error
    return tuple(zip(id_sequences(name, ids), numbers, strict=True))


def strings(name: str, value: Any) -> tuple[str, ...]:
    """One string, or a list of them."""
    strings = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(string, str) and string for string in strings):
        raise UserError(f"{name} is {shown(value)}; needed: a string or a list of them, none empty")
    return strings


def decay(name: str, value: Any) -> tuple[int, float]:
    """(tokens, factor), as a tuple or a list."""
    try:
        start, factor = value
        return whole(0)(name, start), number("a number above 0", lambda x: x > 0)(name, factor)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{name} is {shown(value)}; needed: (new tokens before the penalty begins, a factor above 0)"
        ) from error
