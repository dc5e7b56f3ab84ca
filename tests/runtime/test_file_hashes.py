"""Which files an artifact may have, and which of their hashes are remembered."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgellama.artifact import files, hash_cache
from edgellama.artifact.manifest import FileEntry
from edgellama.errors import UserError
from support.refusals import refusal


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
