"""Tensors made piece by piece, on several cores, and written in order: no tensor is ever whole in memory.

A piece is a function that makes some rows of a tensor. Pieces are made ahead of the writer, a few at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellama.artifact.manifest import TensorSpec

from ..checkpoint.row_blocks import Piece

T = TypeVar("T")


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def made_in_order(pieces: Iterable[tuple[T, Piece]], threads: int | None = None) -> Iterator[tuple[T, NDArray[Any]]]:
    """The keys with what their pieces make, in the order given; at most threads + 1 pieces are made ahead."""
    threads = threads or cores()
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
    """A new file and the SHA-256 of what is written to it."""

    def __init__(self, path: Path) -> None:
        self._state, self._file = hashlib.sha256(), path.open("wb")
        self.size = 0

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes | NDArray[Any]) -> None:
        """Bytes, or an array's in row-major order."""
        plain = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
        self._file.write(plain)
        self._state.update(plain)
        self.size += len(plain)

    def align(self, to: int) -> None:
        self.write(bytes(-self.size % to))

    @property
    def sha256(self) -> str:
        return self._state.hexdigest()


def write_tensors(
    file: HashedFile,
    specs: Sequence[TensorSpec],
    pieces: Callable[[str], Iterable[Piece]],
    alignment: int,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, tuple[int, int]]:
    """Write the tensors of `specs` in order, each filled up to a multiple of `alignment` bytes.

    pieces(name): what makes the tensor's rows, block by block; they must come to its dtype and shape (ValueError).
    done(bytes) is called after each piece. Returns where each tensor lies: name -> (offset, bytes).
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
