"""Files of an artifact that are truncated, overwritten or replaced while a model loads, and after it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellama.artifact import hash_cache, private_copy
from edgellama.artifact.manifest import Artifact, TensorSpec
from edgellama.artifact.private_copy import BLOCK, HUGE_PAGE, PrivateCopy, copied, mapped, private_memory
from edgellama.engine import engine
from edgellama.engine.engine import Engine
from edgellama.engine.kv_cache import KVCache
from edgellama.errors import UserError
from support.child import run_child
from support.exported import export_tiny
from support.mappings import HUGE_PAGES, on_huge_pages
from support.tiny import in_place_manifest
from support.toy_tokenizers import byte_level, save

SIZE = 3 * BLOCK + 12_345

# Damages files after a model was loaded, and while it loads: behind its first graph. A SIGBUS would end the process.
DAMAGED = """
import json, shutil, sys
from pathlib import Path
from edgellama.engine import engine
from edgellama.errors import UserError
from edgellama.model import LlamaForCausalLM

clean, listed = Path(sys.argv[1]), sys.argv[2:]
folder = clean.with_name("damaged")
original = engine.LiteGraph

def answer(model):
    return model.generate([[5, 6, 7]] * 2, max_new_tokens=8, do_sample=False).tolist(), model.tokenizer.encode("a b")

def damage(path, kind):
    size = path.stat().st_size
    if kind == "replace":
        other = folder / "other"
        other.write_bytes(b"\\xff" * size)
        other.replace(path)
    else:
        with path.open("r+b") as file:
            file.truncate(size // 2) if kind == "truncate" else file.write(b"\\xff" * size)

def result(names, kind, when):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(clean, folder)
    left = list(names) if when == "during" else []
    def damaging(*arguments, **named):
        made = original(*arguments, **named)
        while left:
            damage(folder / left.pop(), kind)
        return made
    engine.LiteGraph = damaging
    try:
        model = LlamaForCausalLM.from_pretrained(folder, threads=1)
        if "tokenizer.json" not in names:
            model.tokenizer
        if when == "after":
            for name in names:
                damage(folder / name, kind)
        found = answer(model)
    except UserError as error:
        found = str(error)
    print(json.dumps([names, when, "same" if found == expected else found]))

expected = answer(LlamaForCausalLM.from_pretrained(clean, threads=1))
for kind in ("truncate", "overwrite", "replace"):
    result(listed, kind, "after")
    result(listed[-1:], kind, "during")
result(["tokenizer.json"], "replace", "after")
result(["tokenizer.json"], "overwrite", "during")
result(listed[-2:-1], "overwrite", "during")
"""


@pytest.mark.parametrize("target", ["cpu", pytest.param("portable", marks=pytest.mark.slow)])
def test_a_change_of_any_file_is_an_error_or_changes_nothing(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "clean"
    shutil.copytree(export_tiny(target), folder)
    save(folder, byte_level())
    listed = [entry.file for entry in Artifact.open(folder).manifest.files()]
    out = run_child("-c", DAMAGED, str(folder), *listed).stdout
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 9
    for names, when, state in found:
        if when == "after" and names == listed:
            assert state == "same"
        else:
            assert f"{names[0]}: was changed" in state or f"{names[0]}: MindSpore Lite could not load it" in state


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_cache, "SETTLED", -60.0)  # files that have just been written count as old
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def test_a_copy_has_the_bytes_of_the_file_and_keeps_them(path: Path) -> None:
    data = path.read_bytes()
    found = copied(path)
    path.write_bytes(b"")
    assert found.tobytes() == data
    assert found.ctypes.data % HUGE_PAGE == 0 and not found.flags.writeable


def test_copied_bytes_are_hashed_once_until_the_file_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    original = private_copy.check_hash
    monkeypatch.setattr(private_copy, "check_hash", lambda *given: hashed.append("") or original(*given))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def load(known: list[str] | None = None) -> None:
        with PrivateCopy(path, SIZE, sha256=sha256, known=known) as copy:
            copy.wait()

    for _ in range(3):
        load()
    assert len(hashed) == 1
    load(known=[])
    assert len(hashed) == 2
    with path.open("r+b") as file:
        file.seek(SIZE - 1)
        file.write(b"?")
    with pytest.raises(UserError, match=r"file: SHA-256 .*manifest\.json says"):
        load()
    path.write_bytes(b"?")
    with pytest.raises(UserError, match=r"file: 1 bytes; manifest\.json says"):
        load()


CHANGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, 2 * BLOCK),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.open("ab").write(b"x"),
    "a byte": lambda path: path.open("r+b").write(b"x"),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("hashed", [True, False])
def test_a_change_while_it_is_copied_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str, hashed: bool
) -> None:
    original, calls = os.preadv, []

    def changing(*arguments):  # type: ignore[no-untyped-def]
        calls.append("")
        if len(calls) == 2:
            CHANGES[change](path)
        return original(*arguments)

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if hashed else None
    monkeypatch.setattr(os, "preadv", changing)
    with (
        PrivateCopy(path, SIZE, sha256=sha256) as copy,
        pytest.raises(UserError, match="was changed while it was load"),
    ):
        copy.wait()


def test_without_threads_the_file_is_copied_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(private_copy.ThreadPoolExecutor, "submit", refuse)
    assert copied(path).tobytes() == path.read_bytes()


def test_threads_copy_before_anybody_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads for a file of several blocks; one for a small file, and to hash, which needs the blocks in order."""
    original, barrier = os.preadv, threading.Barrier(2)
    names: list[str] = []

    def noted(*arguments: Any) -> int:
        if (name := threading.current_thread().name) not in names:
            names.append(name)
            if not alone:
                barrier.wait(30)
        return original(*arguments)

    monkeypatch.setattr(os, "preadv", noted)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    small = path.with_name("small")
    small.write_bytes(b"x" * BLOCK)
    for file, given, alone in ((path, None, False), (path, sha256, True), (small, None, True)):
        names.clear()
        with PrivateCopy(file, sha256=given) as copy:
            assert wait(copy._parts, 30).not_done == set()
        assert len(names) == (1 if alone else 2)
        assert threading.current_thread().name not in names


def test_leaving_the_block_stops_the_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = os.preadv, []

    def slow(*arguments: Any) -> int:
        calls.append("")
        time.sleep(0.002)
        return original(*arguments)

    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(private_copy, "BLOCK", 1 << 12)  # more than 1,500 of them
    for sha256 in (None, "0" * 64):
        calls.clear()
        with PrivateCopy(path, sha256=sha256):
            pass
        assert len(calls) < 200


def test_a_file_that_was_just_written_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy begins when a change of the file is sure to change its stat. So the hash can be remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "new"
    path.write_bytes(b"abc")
    sha256 = hashlib.sha256(b"abc").hexdigest()
    with PrivateCopy(path, sha256=sha256) as copy:
        assert copy.wait().tobytes() == b"abc"
    assert hash_cache.remembered() == [hash_cache.key(path.stat(), sha256)]
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with PrivateCopy(path, sha256=sha256) as copy:
        copy.wait()
    assert not waited  # it is old now


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, message in (
        (fifo, r"fifo: a fifo; needed: a regular file\. Load it"),
        (tmp_path, "needed: a regular file"),
        (tmp_path / "nothing", r"nothing: cannot be read \(No such file or directory\)\. Load it"),
    ):
        with pytest.raises(UserError, match=message):
            copied(path, "Load it")
    empty = tmp_path / "empty"
    empty.touch()
    for read in (copied, mapped):
        with pytest.raises(UserError, match=r"empty: 0 bytes\. Load it"):
            read(empty, "Load it")
    with pytest.raises(UserError, match=r"nothing: cannot be read .*\. Load it"):
        mapped(tmp_path / "nothing", "Load it")


def test_a_file_that_cannot_be_read_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(UserError, match=r"file: cannot be read \(Input/output error\)\. Load it"):
        copied(path, "Load it")


def test_a_first_load_hashes_what_it_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine hashes the copied bytes, so a file that changes after `open` is found, and is read once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    in_place_manifest(tmp_path / "toy", batch=1)
    (tmp_path / "toy" / "step.mindir").unlink()
    weights = tmp_path / "toy" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    opened = Artifact.open(tmp_path / "toy", weights_later=True)
    for memory in engine.WEIGHTS_MEMORY:
        with pytest.raises(UserError, match=r"weights\.safetensors: SHA-256"):
            Engine(opened, weights_memory=memory, build=lambda path: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match="weights_memory is 'share'; needed: one of copy, map"):
        Engine(opened, weights_memory="share")


def test_private_memory_is_zero_and_of_any_size() -> None:
    for size in (1, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1):
        memory = private_memory(size)
        assert memory.size == size and not memory.any()
        memory[:] = 1
    for size in range(2 << 20, 12 << 20, 1 << 20):  # of 2 MB on x86-64 and aarch64; without them a page of 4 KB
        assert private_memory(size).ctypes.data % (2 << 20) == 0
        assert private_memory(size, huge=False).ctypes.data % (4 << 10) == 0
    if HUGE_PAGES:
        for size in (1, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 1):  # a smaller file would waste most of a huge page
            assert on_huge_pages(private_memory(size)) == (size >= HUGE_PAGE)
            assert not on_huge_pages(private_memory(size, huge=False))


def test_the_arrays_of_a_cache_do_not_overlap() -> None:
    shape = (1, 3, 5, 7)
    cache = KVCache(500)
    specs = [TensorSpec(f"{kind}_cache.{layer}", "int8", shape) for layer in range(2) for kind in "kv"]
    specs += [TensorSpec(f"{kind}_scale.{layer}", "int16", shape[:3]) for layer in range(2) for kind in "kv"]
    arrays = [cache.bind(spec) for spec in specs]
    for value, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0 and not array.any()
        array[:] = value + 1
    assert [set(array.flat) for array in arrays] == [{value + 1} for value in range(len(arrays))]
