"""The one reader of JSON files: artifacts, checkpoints and sessions. It bounds a file before anything uses its values.

Limits: the size of the file, the depth of nesting, the length of a number. Refused: bytes that are not UTF-8, halves of
surrogate pairs, NaN and infinity, duplicate keys, and anything but a regular file.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from ..errors import UserError

LARGEST = 16 << 20  # bytes of a file; the largest known, an index of tensors, has 9 MB
DEEPEST = 64  # lists and objects within one another
LONGEST_NUMBER = 64  # characters; tokenizer_config.json of many models has an integer of 31 digits
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        remedy: ends the message of an error, for example "Restore it or export again".

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file cannot be read, exceeds a limit, or holds no JSON object.
    """
    try:
        return parse_object(read_bytes(path, LARGEST))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}. {remedy}") from error


def read_bytes(path: Path, largest: int) -> bytes:
    """Return the content of a regular file of at most `largest` bytes.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: it is no regular file, or larger. The message continues "<path>: ".
    """
    # O_NONBLOCK: opening a fifo must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ValueError(f"{kind_of(found.st_mode)}; needed: a regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"{max(found.st_size, len(data)):,} bytes; at most {largest:,} are read")
    return data


def kind_of(mode: int) -> str:
    """Return what a file is, in words, from its st_mode."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "a regular file" if stat.S_ISREG(mode) else "a device")


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Return the JSON object in `data`. Raises ValueError as `parse` does, and for anything but an object."""
    value = parse(data)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}; needed: an object")
    return value


def parse(data: bytes | str) -> Any:
    """Return the value in a JSON text.

    Raises:
        ValueError: the text is not valid JSON, or exceeds a limit. The message continues "<path>: ".
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        _check_depth(text)
        value = json.loads(
            text, parse_int=_integer, parse_float=_float, parse_constant=_constant, object_pairs_hook=_object
        )
        if _SURROGATE.search(text):
            _check_characters(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid JSON (byte {error.start:,} is not UTF-8)") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from error
    return value


def _check_depth(text: str) -> None:
    """Raise ValueError if lists and objects are nested more than DEEPEST times.

    This runs before the parser, whose recursion would stop at Python's limit or, if that is high, crash.
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])  # of strings
    depth = 0
    for bracket in re.sub(r"[^\[\]{}]+", "", outside):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")


def _integer(text: str) -> int:
    _check_length(text)
    return int(text)


def _float(text: str) -> float:
    _check_length(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


def _check_length(text: str) -> None:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number has {len(text):,} characters, at most {LONGEST_NUMBER} are read")


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found


def _check_characters(value: Any) -> None:
    """Raise ValueError if a string holds half a surrogate pair, which no file name and no terminal can take."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"half a surrogate pair in {value[:60]!a}")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_characters(name)
            _check_characters(item)
    elif isinstance(value, list):
        for item in value:
            _check_characters(item)
