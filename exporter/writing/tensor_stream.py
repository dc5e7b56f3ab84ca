"""Writes tensors as a stream: several cores compute blocks of rows, and one thread writes them in order.

A piece (exporter/checkpoint/row_blocks.py) computes some rows of a tensor. A few pieces are computed ahead of the
writer, so no tensor is ever whole in memory.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import TensorSpec
from edgellama.backend.resources import available_threads

from ..checkpoint.row_blocks import Piece

T = TypeVar("T")


def made_in_order(pieces: Iterable[tuple[T, Piece]], threads: int | None = None) -> Iterator[tuple[T, NDArray[Any]]]:
    """Yield each key with the rows that its piece computes, in the given order.

    Computes at most threads + 1 pieces ahead. threads: all CPUs by default.
    """
    threads = threads or available_threads()
    waiting: deque[tuple[T, Future[NDArray[Any]]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for key, piece in pieces:
            waiting.append((key, pool.submit(piece)))
            if len(waiting) > threads + 1:
                key, future = waiting.popleft()
                yield key, future.result()
        while waiting:
            key, future = waiting.popleft()
            yield key, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class HashedFile:
    """A new file that computes the SHA-256 of its content while it is written."""

    def __init__(self, path: Path) -> None:
        self._state, self._file = hashlib.sha256(), path.open("wb")
        self.size = 0

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes | NDArray[Any]) -> None:
        """Append bytes, or the bytes of an array in row-major order."""
        plain = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
        self._file.write(plain)
        self._state.update(plain)
        self.size += len(plain)

    def align(self, to: int) -> None:
        """Append zeros until the size is a multiple of `to`."""
        self.write(bytes(-self.size % to))

    @property
    def sha256(self) -> str:
        """The hash of the bytes so far, in hex."""
        return self._state.hexdigest()


def write_tensors(
    file: HashedFile,
    specs: Sequence[TensorSpec],
    pieces: Callable[[str], Iterable[Piece]],
    alignment: int,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, tuple[int, int]]:
    """Write tensors in order, each padded with zeros to a multiple of `alignment` bytes.

    Args:
        specs: the tensors.
        pieces: called with a tensor's name; returns the pieces that compute its rows, in order.
        done: called with the size of each piece after it is written.

    Returns name -> (offset, bytes) of each tensor. Raises ValueError if the pieces of a tensor do not have its dtype
    and shape.
    """
    found: dict[str, tuple[int, int]] = {}
    work = ((spec, piece) for spec in specs for piece in pieces(spec.name))
    for spec, made in groupby(made_in_order(work), key=lambda pair: pair[0]):
        offset, rows = file.size, 0
        for _, array in made:
            rows += len(array)
            if array.dtype != spec.dtype or rows > spec.shape[0] or array.shape[1:] != spec.shape[1:]:
                raise ValueError(f"{spec.name}: {array.dtype} {array.shape} for a {spec.dtype} of {spec.shape}")
            file.write(array)
            done(array.nbytes)
        if rows != spec.shape[0]:
            raise ValueError(f"{spec.name}: {rows} rows for a {spec.dtype} of {spec.shape}")
        found[spec.name] = offset, file.size - offset
        file.align(alignment)
    if missing := [spec.name for spec in specs if spec.name not in found]:
        raise ValueError(f"{missing[0]}: nothing was written")
    return found
