"""The table of a weights file: what is written, and each fault that is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save_file

from edgellama.artifact import json_reader
from edgellama.artifact.manifest import TensorSpec
from edgellama.artifact.safetensors import LARGEST, Entry, TensorFile, encode_header, read_header, read_table
from edgellama.errors import UserError
from support.refusals import refusal

SPECS = [TensorSpec("a", "float32", (3, 5)), TensorSpec("b", "int8", (64,)), TensorSpec("c", "bool", (1,))]


@pytest.mark.parametrize("alignment", [1, 8, 64])
def test_a_header_is_read_by_the_library(tmp_path: Path, alignment: int) -> None:
    header = encode_header(SPECS, {"made": "here"}, alignment)
    values = [np.random.default_rng(1).integers(0, 2, spec.shape).astype(spec.dtype) for spec in SPECS]
    data = b"".join(v.tobytes() + bytes(-v.nbytes % alignment) for v in values)
    path = tmp_path / "w.safetensors"
    path.write_bytes(header + data)
    assert len(header) % max(alignment, 8) == 0 and int.from_bytes(header[:8], "little") == len(header) - 8
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"made": "here"}
        for spec, value in zip(SPECS, values, strict=True):
            np.testing.assert_array_equal(file.get_tensor(spec.name), value)
        fillers = {name for name in file.keys() if name.endswith(".alignment")}  # noqa: SIM118
    assert fillers == {1: set(), 8: {"a.alignment", "c.alignment"}, 64: {"a.alignment", "c.alignment"}}[alignment]
    ours = TensorFile(path)
    assert ours.names() == ["a", "b", "c"] and ours.metadata == {"made": "here"}
    for spec, value in zip(SPECS, values, strict=True):
        np.testing.assert_array_equal(ours.array(spec.name), value)
        assert ours.array(spec.name).ctypes.data % alignment == 0
    ours.check(SPECS, {}, alignment)
    assert b"__metadata__" not in encode_header(SPECS) and load(encode_header(SPECS[2:]) + b"\1")["c"].tolist() == [
        True
    ]


def test_a_header_has_the_length_that_it_says() -> None:
    text = b'{"a": 1}'

    def read(length: int, data: bytes) -> str:
        return refusal(lambda: read_header(io.BytesIO(length.to_bytes(8, "little") + data)))

    assert read_header(io.BytesIO(len(text).to_bytes(8, "little") + text + b"rest")) == ({"a": 1}, 8 + len(text))
    assert read(9, text) == "9 bytes long, and the file ends after 8 of them"
    assert "not valid JSON" in read(7, text) and "it has" not in read(7, text)
    assert read(LARGEST + 1, b"x") == f"not valid JSON: it has {LARGEST + 1:,} bytes, at most {LARGEST:,} are read"
    assert "it has" not in read(LARGEST, b"x")


def row(dtype: Any = "U8", shape: Any = (4,), begin: Any = 0, end: Any = 4) -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_table_is_sorted_by_place() -> None:
    header = {
        "second": row("I16", (2, 3), 4, 16),
        "first": row(),
        "empty": row("F32", (0, 7), 4, 4),
        "scalar": row("F32", (), 16, 20),
        "__metadata__": {"a": "b"},
    }
    table = read_table(header, 20)
    assert list(table) == ["first", "empty", "second", "scalar"]
    assert table["second"] == Entry("I16", (2, 3), 4, 16)
    assert read_table({}, 0) == {}
    ranks = [refusal(lambda rank=rank: read_table({"x": row("U8", (1,) * rank, 0, 1)}, 1)) for rank in (8, 9)]
    assert ranks[0] == "" and "shape" in ranks[1]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": row(), "b": row(begin=5, end=9)}, "tensor 'b' leaves 1 bytes unused"),
        ({"a": row(), "b": row(begin=3, end=7)}, "tensor 'b' overlaps the one before"),
        ({"a": row(begin=1, end=5)}, "tensor 'a' leaves 1 bytes unused"),
        ({"a": row(), "b": row(begin=4, end=8, shape=(4,)), "c": row(begin=8, end=12)}, "at byte 12 of 10 bytes"),
        ({"a": row()}, "6 bytes follow its last tensor"),
        ({"a": row(), "__metadata__": []}, "its __metadata__ is no object of strings"),
        ({"a": row(), "__metadata__": {"x": 1}}, "its __metadata__ is no object of strings"),
        ({"a": 1}, "needed: dtype, shape and data_offsets"),
        ({"a": {"dtype": "U8", "shape": [4]}}, "needed: dtype, shape and data_offsets"),
        ({"a": {**row(), "more": 1}}, "needed: dtype, shape and data_offsets"),
        ({"a": row("F8")}, "dtype 'F8'; known: BOOL, U8, I8, I16, F16, I32, F32, I64, BF16"),
        ({"a": row(["U8"])}, r"dtype ['U8']"),
        ({"a": row(shape=(-1,))}, "shape [-1]"),
        ({"a": row(shape=(True,))}, "shape [True]"),
        ({"a": row(shape=(1.0,))}, "shape [1.0]"),
        ({"a": row(shape="4")}, "shape '4'"),
        ({"a": row(shape=(1 << 62, 0), end=0)}, "shape [4611686018427387904, 0]"),
        ({"a": row(shape=((1 << 62) - 1, 0), end=0)}, "10 bytes follow its last tensor"),
        ({"a": row(begin=4, end=0)}, "data_offsets [4, 0]"),
        ({"a": {**row(), "data_offsets": [0, 4, 8]}}, "data_offsets [0, 4, 8]"),
        ({"a": {**row(), "data_offsets": [4]}}, "data_offsets [4]"),
        ({"a": row(begin=None)}, "data_offsets [None, 4]"),
        ({"a": row("I16")}, "4 bytes; I16 [4] has 8"),
        ({"a": row("BF16", (2,)), "b": row("F16", (3,), 4, 10)}, ""),
    ],
)
def test_each_fault_of_a_table_is_named(header: dict[str, Any], message: str) -> None:
    found = refusal(lambda: read_table(header, 10))
    assert message in found and bool(message) == bool(found)


def test_long_values_are_shortened() -> None:
    for length, shown in ((78, "x" * 78 + "'"), (79, "x" * 76 + "...")):
        found = refusal(lambda length=length: read_table({"x" * length: row(begin=1, end=5)}, 5))
        assert found == f"tensor '{shown} leaves 1 bytes unused"


def weights(folder: Path, alignment: int = 8, **tensors: int) -> TensorFile:
    """Returns a file of uint8 tensors of these sizes, named with dots for double underscores."""
    specs = [TensorSpec(name.replace("__", "."), "uint8", (size,)) for name, size in tensors.items()]
    data = b"".join(bytes([i]) * spec.nbytes + bytes(-spec.nbytes % alignment) for i, spec in enumerate(specs, 1))
    (folder / "w").write_bytes(encode_header(specs, None, alignment) + data)
    return TensorFile(folder / "w", "Do this")


def test_a_stretch_is_one_range(tmp_path: Path) -> None:
    found = weights(tmp_path, l0__a=8, l0__b=3, l1__a=8, l0__c=8)
    assert found.array("l1.*").tolist() == [3] * 8
    with pytest.raises(UserError, match=r"'l0\.\*' are not one contiguous range, which the graph needs. Do this"):
        found.array("l0.*")
    both = weights(tmp_path, x=8, l0__a=8, l0__b=3, y=8)
    assert both.array("l0.*").tolist() == [2] * 8 + [3] * 3 + [0] * 5
    assert both.names() == ["x", "l0.a", "l0.b", "y"] and "l0.a" in both and "l0" not in both


def test_the_table_is_compared_with_what_the_graphs_take(tmp_path: Path) -> None:
    found = weights(tmp_path, l0__a=8, l0__b=3, y=8)
    a, b, y = (TensorSpec(name, "uint8", (size,)) for name, size in (("l0.a", 8), ("l0.b", 3), ("y", 8)))
    stretch = TensorSpec("l0.*", "uint8", (16,))

    def check(wanted: list[TensorSpec], members: list[TensorSpec], alignment: int = 8) -> str:
        return refusal(lambda: found.check(wanted, {"l0.*": members}, alignment), UserError)

    path = tmp_path / "w"
    assert check([stretch, y], [a, b]) == check([a, b, y], []) == check([y, stretch], [a, b]) == ""
    assert check([a, y], []) == f"{path}: has a tensor 'l0.b' that no graph takes. Do this"
    assert "has no tensor 'z', which the graph needs" in check([a, b, y, TensorSpec("z", "uint8", (1,))], [])
    short = TensorSpec("l0.*", "uint8", (15,))
    assert "tensor 'l0.*' is uint8 [16]; the graph takes uint8 [15]" in check([short, y], [a, b])
    assert "'l0.*' has 'l0.a' where the kernel reads 'l0.b'" in check([stretch, y], [b, a])
    assert "has ['l0.a', 'l0.b'] where the kernel reads ['l0.a']" in check([stretch, y], [a])
    for spec in (TensorSpec("y", "int8", (8,)), TensorSpec("y", "uint8", (8, 1))):
        assert f"'y' is uint8 [8]; the graph takes {spec.dtype} {list(spec.shape)}" in check([stretch, spec], [a, b])
    assert "begins at byte" in check([stretch, y], [a, b], 1 << 20) and check([stretch, y], [a, b], 1) == ""


def test_a_tensor_is_aligned_in_the_file_and_not_in_the_data(tmp_path: Path) -> None:
    y = TensorSpec("y", "uint8", (4,))
    aligned = []
    for size in range(10, 74):  # bytes before y, under the name of a filler
        header = encode_header([TensorSpec("y.alignment", "uint8", (size,)), y], {"m": "x" * 12})
        (tmp_path / "w").write_bytes(header + bytes(size) + b"1234")
        found = refusal(lambda: TensorFile(tmp_path / "w").check([y], {}, 64), UserError)
        assert bool(found) == bool((len(header) + size) % 64)
        aligned.append(not found)
    assert sum(aligned) == 1 and len(header) % 32


def test_files_that_hold_no_table(tmp_path: Path) -> None:
    path = tmp_path / "w"
    assert refusal(lambda: TensorFile(path), UserError).startswith(f"{path}: cannot be read (No such file")
    path.write_bytes(b"")
    assert refusal(lambda: TensorFile(path), UserError).startswith(f"{path}: 0 bytes. Copy the whole")
    path.write_bytes(b"\2\0\0\0\0\0\0\0[]")
    assert refusal(lambda: TensorFile(path), UserError).startswith(f"{path}: its header is a JSON list")
    save_file({"w": np.arange(4)}, path)
    path.write_bytes(path.read_bytes() + b"1")
    assert refusal(lambda: TensorFile(path), UserError).startswith(f"{path}: 1 bytes follow its last tensor.")
    assert json_reader.LARGEST == LARGEST == 16 << 20
