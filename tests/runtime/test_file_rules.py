"""The limits of the readers of an artifact's files, each on both sides: JSON, hashes, links, and the weights' table."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save_file

from edgellama.artifact import files, hash_cache, json_reader
from edgellama.artifact.json_reader import (
    DEEPEST,
    LONGEST_NUMBER,
    kind_of,
    parse,
    parse_object,
    read_bytes,
    read_object,
)
from edgellama.artifact.manifest import FileEntry, TensorSpec
from edgellama.artifact.safetensors import LARGEST, Entry, TensorFile, encode_header, read_header, read_table
from edgellama.errors import UserError


def refusal(call: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    """Returns the message of the exception that `call` raises; empty if it raises none."""
    try:
        call()
    except kind as error:
        return str(error)
    return ""


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert read_bytes(path, 10) == b"0123456789"
    assert refusal(lambda: read_bytes(path, 9)) == "10 bytes; at most 9 are read"
    assert refusal(lambda: read_bytes(path, 5)) == "10 bytes; at most 5 are read"


def test_an_unreadable_file_has_its_reason_and_remedy(tmp_path: Path) -> None:
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    assert refusal(lambda: read_object(loop, "Do this"), UserError) == (
        f"{loop}: cannot be read (Too many levels of symbolic links). Do this"
    )
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none", "Do this")
    (tmp_path / "x").write_text("[]")
    assert refusal(lambda: read_object(tmp_path / "x", "Do this"), UserError).endswith("needed: an object. Do this")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert refusal(lambda: read_bytes(tmp_path, 9)) == "a folder; needed: a regular file"
        read_bytes(tmp_path / "x", 9)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("file")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    found = {path.name: kind_of(path.lstat().st_mode) for path in tmp_path.iterdir()}
    assert found == {"file": "a regular file", "fifo": "a fifo", "link": "a link", "socket": "a socket"}
    assert kind_of(Path("/dev/null").stat().st_mode) == "a device" and kind_of(tmp_path.stat().st_mode) == "a folder"
    assert kind_of(stat.S_IFBLK) == "a device"


@pytest.mark.parametrize("opening", ["[", '{"a": '])
def test_nesting_is_bounded(opening: str) -> None:
    closing = {"[": "]", "{": "}"}[opening[0]]

    def nested(depth: int, inner: str = "1") -> str:
        """Returns `depth` levels around `inner`, and a second value in the outermost."""
        beside = "[], " if opening == "[" else '"b": {}, '
        outer = opening[0] + beside + opening[1:]
        return outer + opening * (depth - 1) + inner + closing * depth

    assert refusal(lambda: parse(nested(DEEPEST))) == ""
    deep = f"not valid JSON (nested more than {DEEPEST} levels deep)"
    assert refusal(lambda: parse(nested(DEEPEST + 1))) == deep
    text = json.dumps("]]{{" + '"' + "\\" + "[" * 99 + "\\\\" + '"[' * 50)
    assert refusal(lambda: parse(nested(DEEPEST, text))) == ""
    assert refusal(lambda: parse(nested(DEEPEST + 1, text))) == deep
    assert parse("[" + "[]," * 200 + "[]]") == [[]] * 201  # many, but not deep
    assert refusal(lambda: parse("[" * (DEEPEST + 1))) == deep


def test_numbers_are_bounded() -> None:
    assert parse("9" * LONGEST_NUMBER) == int("9" * LONGEST_NUMBER)
    digits = "0." + "1" * (LONGEST_NUMBER - 2)
    assert parse(digits) == float(digits) and parse("1e308") == 1e308
    for text in ("9" * (LONGEST_NUMBER + 1), digits + "1"):
        assert (
            refusal(lambda text=text: parse(text)) == "not valid JSON (a number has 65 characters, at most 64 are read)"
        )
    assert "the number -1e309 is too large" in refusal(lambda: parse("-1e309"))
    for text in ("NaN", "Infinity", "[-Infinity]"):
        assert "is not a JSON number" in refusal(lambda text=text: parse(text))


def test_half_a_surrogate_pair_is_found_wherever_it_is() -> None:
    for text in (r'"\ud800"', r'["a", "\uDFFF"]', r'{"\udabc": 1}', r'{"a": [{"b": "x\uDBFF"}]}'):
        assert "half a surrogate pair" in refusal(lambda text=text: parse(text)), text
    for text in (r'"\ud83d\ude00"', r'{"\uD83D\uDE00": ["\ud7ff", "\ue000", 1, null]}'):
        assert parse(text) == json.loads(text)


def test_keys_are_unique_and_values_are_objects() -> None:
    assert refusal(lambda: parse('{"a": 1, "b": 2, "b": 2}')) == "not valid JSON (the key 'b' occurs twice)"
    assert parse_object(b'\xef\xbb\xbf{"a": {"a": 1}}') == parse_object('{"a": {"a": 1}}') == {"a": {"a": 1}}
    for text, name in (("[]", "list"), ("1", "int"), ("null", "NoneType"), ('"a"', "str")):
        assert refusal(lambda text=text: parse_object(text)) == f"a JSON {name}; needed: an object"
    assert refusal(lambda: parse(b'"\xc3\xa9\xff"')) == "not valid JSON (byte 3 is not UTF-8)"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the hash cache, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgellama" / hash_cache.NAME


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in ((str(tmp_path / "x"), tmp_path / "x"), ("x", tmp_path / ".cache"), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert hash_cache.cache_folder() == folder / "edgellama"
    monkeypatch.setenv("HOME", "relative")
    assert hash_cache.cache_folder() is None
    monkeypatch.setattr(Path, "home", no_home)
    assert hash_cache.cache_folder() is None and hash_cache.remembered() == []
    hash_cache.remember(["a"])


def test_entries_are_kept_in_order_and_bounded(cache: Path) -> None:
    hash_cache.remember([])
    assert not cache.parent.exists()
    hash_cache.remember(["a", "b"])
    hash_cache.remember(["c", "a"])
    assert hash_cache.remembered() == ["a", "b", "c"]
    assert json.loads(cache.read_text()) == {"format": 1, "verified": ["a", "b", "c"]}
    many = [str(i) for i in range(hash_cache.MOST)]
    hash_cache.remember(many[:-1])
    assert hash_cache.remembered() == ["c", *many[:-1]]
    hash_cache.remember(many[-1:])
    assert hash_cache.remembered() == many
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_cache_file_that_cannot_be_trusted_counts_as_empty(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_cache.remember(["a"])
    good = cache.read_bytes()
    for text in (b'{"format": 2, "verified": ["a"]}', b'{"format": 1, "verified": {"a": 1}}', b'{"verified": ["a"]}'):
        cache.write_bytes(text)
        assert hash_cache.remembered() == []
    cache.write_bytes(b'{"format": 1, "verified": ["a", 1, null, "b"]}')
    assert hash_cache.remembered() == ["a", "b"]
    cache.write_bytes(good.ljust(hash_cache.LARGEST))
    assert hash_cache.remembered() == ["a"]
    cache.write_bytes(good.ljust(hash_cache.LARGEST + 1))
    assert hash_cache.remembered() == []
    cache.write_bytes(good)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    assert hash_cache.remembered() == []


def test_a_failed_write_leaves_the_file_as_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_cache.remember(["a"])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)
        hash_cache.remember(["b"])
    assert hash_cache.remembered() == ["a"] and [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_key_names_the_very_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    found = path.stat()
    numbers = [found.st_dev, found.st_ino, 3, found.st_mtime_ns, found.st_ctime_ns]
    assert hash_cache.key(found, "ff") == "-".join(map(str, [*numbers, "ff"]))


def test_a_file_is_settled_when_it_is_older_than_the_clocks_step() -> None:
    now = time.time() - 5

    def settled(mtime: float, ctime: float, began: float = now) -> bool:
        found = SimpleNamespace(st_mtime_ns=int((now - mtime) * 1e9), st_ctime_ns=int((now - ctime) * 1e9))
        return hash_cache.settled(found, began)  # type: ignore[arg-type]

    assert hash_cache.SETTLED == 0.1
    assert [settled(1, 1), settled(0.11, 0.11), settled(0.09, 1), settled(1, 0.09)] == [True, True, False, False]
    assert not settled(1, 1, time.time() + 60)  # the clock was set back meanwhile


def entry(folder: Path, name: str, data: bytes) -> FileEntry:
    (folder / name).write_bytes(data)
    return FileEntry(name, hashlib.sha256(data).hexdigest(), len(data))


def test_found_files_are_regular_and_inside(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (tmp_path / "ab").write_text("beside, with a name that begins alike")
    (folder / "x").write_bytes(b"123")
    (folder / "sub").mkdir()
    (folder / "linked").symlink_to("x")
    (folder / "nothing").symlink_to("none")
    (folder / "out").symlink_to("../ab")
    (folder / "loop").symlink_to("loop")
    assert files.find(folder, "x").st_size == files.find(folder, "linked").st_size == 3
    states = {}
    for name in ("none", "nothing", "out", "sub", "loop", "a\0b"):
        with pytest.raises(files.WrongFileError) as error:
            files.find(folder, name)
        states[name] = (error.value.state, str(error.value).split(": ", 1)[1].split(".")[0])
    assert states == {
        "none": ("missing", "missing, but manifest"),
        "nothing": ("missing", "a link to nothing"),
        "out": ("not a file", f"a link to {tmp_path / 'ab'}, outside the artifact"),
        "sub": ("not a file", "a folder; needed: a regular file"),
        "loop": ("not a file", "cannot be read (Too many levels of symbolic links)"),
        "a\0b": ("not a file", "cannot be read (embedded null byte)"),
    }
    (tmp_path / "alias").symlink_to("a")
    assert files.find(tmp_path / "alias", "x").st_size == 3  # the folder itself may be a link
    files.check_size(folder, "x", 3)
    for size in (2, 4):
        with pytest.raises(files.WrongFileError, match=f"x: 3 bytes; manifest.json says {size}") as error:
            files.check_size(folder, "x", size)
        assert error.value.state == "wrong size"


def test_every_companion_is_looked_at(tmp_path: Path) -> None:
    files.check_companions(tmp_path)
    (tmp_path / "graphs").mkdir()
    for name in files.COMPANIONS:
        (tmp_path / name).touch()
        files.check_companions(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/null")
        assert "outside the artifact" in refusal(lambda: files.check_companions(tmp_path), UserError), name
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("none")
        assert "a link to nothing" in refusal(lambda: files.check_companions(tmp_path), UserError), name
        (tmp_path / name).unlink()


def test_large_files_are_hashed_unless_known(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SMALL", 8)
    monkeypatch.setattr(hash_cache, "SETTLED", -60.0)
    entries = [entry(tmp_path, "at", b"8" * 8), entry(tmp_path, "above", b"9" * 9)]
    read: list[str] = []
    original = files.sha256_open

    def counting(file: Any, *rest: Any) -> str:
        read.append(Path(file.name).name)
        return original(file, *rest)

    monkeypatch.setattr(files, "sha256_open", counting)
    files.check_hashes(tmp_path, entries)
    key = hash_cache.key((tmp_path / "above").stat(), entries[1].sha256)
    assert read == ["at", "above"] and hash_cache.remembered() == [key]
    files.check_hashes(tmp_path, entries)
    assert read[2:] == ["at"]
    files.check_hashes(tmp_path, entries, [])
    files.check_hashes(tmp_path, entries, [key])
    assert read[3:] == ["at", "above", "at"]
    monkeypatch.setattr(hash_cache, "remembered", lambda: 1 / 0)
    files.check_hashes(tmp_path, entries[:1])  # small files alone: the cache is not even read


def test_a_hash_that_differs_is_named(tmp_path: Path, cache: Path) -> None:
    good, bad = entry(tmp_path, "good", b"1"), FileEntry("good", "ab" * 32, 1)
    found = hashlib.sha256(b"1").hexdigest()
    with pytest.raises(
        files.WrongFileError, match=f"good: SHA-256 {found[:12]}; manifest.json says abababababab"
    ) as error:
        files.check_hashes(tmp_path, [good, bad])
    assert error.value.state == "damaged"
    missing = FileEntry("none", found, 1)
    assert "none: cannot be read (No such file or directory)" in refusal(
        lambda: files.check_hashes(tmp_path, [missing]), UserError
    )


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SMALL", 0)
    monkeypatch.setattr(hash_cache, "SETTLED", -60.0)
    original = files.sha256_open

    def changing(file: Any, *rest: Any) -> str:
        found = original(file, *rest)
        os.utime(tmp_path / "x", ns=(1, 1))
        return found

    monkeypatch.setattr(files, "sha256_open", changing)
    files.check_hashes(tmp_path, [entry(tmp_path, "x", b"123")])
    assert hash_cache.remembered() == []


def test_progress_counts_what_is_hashed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SMALL", 0)
    texts: list[str] = []
    shown: list[Callable[[], str]] = []

    def progress(what: Callable[[], str], delay: float) -> Any:
        assert delay == 1.0
        shown.append(what)
        return nullcontext()

    def reporting(file: Any, done: Callable[[int], None]) -> str:
        texts.append(shown[0]())
        digest = hashlib.sha256(file.read()).hexdigest()
        done(file.tell())
        texts.append(shown[0]())
        return digest

    monkeypatch.setattr(files, "progress", progress)
    monkeypatch.setattr(files, "sha256_open", reporting)
    entries = [entry(tmp_path, "a", b"x" * 3_000_000), entry(tmp_path, "b", b"y" * 1_000_000)]
    files.check_hashes(tmp_path, entries, [], show_progress=True)
    assert texts == [f"Checking the files of {tmp_path.name} ({part}% of 4 MB)" for part in (0, 75, 75, 100)]
    shown.clear()
    monkeypatch.setattr(files, "sha256_open", lambda file, done: hashlib.sha256(file.read()).hexdigest())
    files.check_hashes(tmp_path, entries, [])
    assert not shown
    files.check_hashes(tmp_path, [], [], show_progress=True)
    assert shown[0]().endswith("(0% of 0 MB)")


def test_hashes_are_hashlibs_for_any_length(tmp_path: Path) -> None:
    for size in (0, 1, files.BLOCK - 1, files.BLOCK, files.BLOCK + 1):
        data, done = bytes(size), list[int]()
        (tmp_path / "x").write_bytes(data)
        assert files.sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()
        with (tmp_path / "x").open("rb") as file:
            assert files.sha256_open(file, done.append) == hashlib.sha256(data).hexdigest()
        assert sum(done) == size and all(0 < count <= files.BLOCK for count in done)


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
