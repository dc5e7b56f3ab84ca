"""Weights are written piece by piece, in order, with few pieces in memory, into a file that safetensors reads."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgellama.artifact.manifest import TensorSpec
from edgellama.exporter.checkpoint.row_blocks import Piece, row_blocks
from edgellama.exporter.writing.tensor_stream import HashedFile, made_in_order, write_tensors
from edgellama.exporter.writing.weights_file import write_weights

ARRAYS = {
    "a": np.arange(35, dtype=np.float32).reshape(7, 5),
    "b": np.arange(3, dtype=np.uint8),
    "c": np.arange(128, dtype=np.int32).reshape(2, 2, 32),
}
SPECS = [TensorSpec(name, str(array.dtype), array.shape) for name, array in ARRAYS.items()]


def some_pieces(name: str, rows: int = 2) -> Iterator[Piece]:
    array = ARRAYS[name]
    for first in range(0, len(array), rows):
        yield partial(lambda part: part, array[first : first + rows])


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_safetensors_reads_what_was_written(tmp_path: Path, rows: int) -> None:
    done: list[int] = []
    entry = write_weights(tmp_path, "w.safetensors", SPECS, partial(some_pieces, rows=rows), done.append)
    data = (tmp_path / "w.safetensors").read_bytes()
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    loaded = load_file(tmp_path / "w.safetensors")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert sum(done) == sum(array.nbytes for array in ARRAYS.values())


@pytest.mark.parametrize(
    "bad",
    {
        "too few rows": [np.zeros((6, 5), np.float32)],
        "too many rows": [np.zeros((6, 5), np.float32)] * 2,
        "other columns": [np.zeros((7, 4), np.float32)],
        "other type": [np.zeros((7, 5), np.float64)],
        "nothing": [],
    }.items(),
    ids=lambda bad: bad[0],
)
def test_pieces_that_do_not_add_up_to_the_tensor_are_refused(tmp_path: Path, bad: tuple[str, list[np.ndarray]]) -> None:
    with HashedFile(tmp_path / "x") as file, pytest.raises(ValueError, match=r"^a: "):
        write_tensors(file, SPECS[:1], lambda name: (partial(lambda x: x, array) for array in bad[1]), 64)


def test_pieces_are_made_at_once_and_come_in_order() -> None:
    """Four pieces are made at a time although the first takes longest; never more than a few ahead of the reader."""
    meet = threading.Barrier(4)
    made: list[int] = []

    def make(number: int) -> np.ndarray:
        if number < 4:
            meet.wait(timeout=30)  # passes only if four run at the same time
        time.sleep(0.05 if number == 0 else 0)
        made.append(number)
        return np.array([number])

    seen = []
    for key, array in made_in_order(((i, partial(make, i)) for i in range(40)), threads=4):
        assert key == array[0]
        seen.append(key)
        assert len(made) <= len(seen) + 6
    assert seen == list(range(40))


def test_an_error_in_a_piece_is_the_readers() -> None:
    def fail() -> np.ndarray:
        raise ValueError("no such rows")

    with pytest.raises(ValueError, match="no such rows"):
        list(made_in_order([(0, lambda: np.zeros(1)), (1, fail)] * 20, threads=2))


def test_row_blocks_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellama.exporter.checkpoint.row_blocks.PIECE_BYTES", 1000)
    for rows in (1, 31, 32, 33, 320):
        for row_bytes in (1, 10, 999, 5000):
            blocks = list(row_blocks(rows, row_bytes, multiple=32))
            assert [first for first, _ in blocks] == [sum(n for _, n in blocks[:i]) for i in range(len(blocks))]
            assert sum(count for _, count in blocks) == rows
            assert all(count % 32 == 0 for _, count in blocks[:-1])
            assert all(count * row_bytes <= 1000 or count <= 32 for _, count in blocks)
