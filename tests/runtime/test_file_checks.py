"""The files of an artifact: hashes once per machine, `edgellama check`, links and fifos; limits of the JSON reader."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgellama.artifact import files, hash_cache, json_reader
from edgellama.artifact.manifest import Artifact
from edgellama.errors import UserError
from support.child import REPOSITORY
from support.command_line import run_main
from support.manifest_edits import rewrite
from support.tiny import in_place_manifest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact whose weights file counts as large, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "SMALL", 100)
    in_place_manifest(tmp_path / "toy", batch=1)
    (tmp_path / "toy" / "step.mindir").unlink()  # which this manifest does not list
    for path in (tmp_path / "toy").iterdir():
        os.utime(path)  # their ctime is now, and hashing waits until it is old enough to be remembered
    monkeypatch.setattr(hash_cache, "SETTLED", -60.0)
    return tmp_path / "toy"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the large files that were hashed."""
    found: list[str] = []
    original = files.sha256_open

    def counting(file, *rest):  # type: ignore[no-untyped-def]
        if Path(file.name).stat().st_size > 100:
            found.append(Path(file.name).name)
        return original(file, *rest)

    monkeypatch.setattr(files, "sha256_open", counting)
    return found


def flip(path: Path, keep_times: bool = False) -> None:
    """Flips a bit in the middle of a file."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 4]))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_large_file_is_hashed_once_until_it_changes(folder: Path, hashed: list[str]) -> None:
    for _ in range(3):
        Artifact.open(folder)
    assert hashed == ["weights.safetensors"]
    Artifact.open(folder, check="always")
    assert len(hashed) == 2
    flip(folder / "weights.safetensors", keep_times=True)
    for _ in range(2):
        with pytest.raises(UserError, match=r"weights\.safetensors: SHA-256"):
            Artifact.open(folder)
    assert Artifact.open(folder, check="sizes")
    flip(folder / "weights.safetensors")
    assert Artifact.open(folder)


def test_a_file_that_has_just_changed_is_not_remembered(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change again within the step of the kernel's clock, with the same ctime."""
    monkeypatch.setattr(hash_cache, "SETTLED", 60.0)
    Artifact.open(folder)
    Artifact.open(folder)
    assert len(hashed) == 2 and hash_cache.remembered() == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 1, "verified": [1, null]}', b"\xff", b"[" * 10**6])
def test_a_damaged_cache_file_costs_one_hash(folder: Path, hashed: list[str], tmp_path: Path, damage: bytes) -> None:
    Artifact.open(folder)
    cache = tmp_path / "cache" / "edgellama" / hash_cache.NAME
    cache.write_bytes(damage)
    Artifact.open(folder)
    Artifact.open(folder)
    assert len(hashed) == 2
    assert [path.name for path in cache.parent.iterdir()] == [hash_cache.NAME]


def test_without_a_cache_folder_every_load_hashes(
    folder: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", Path("/proc/nowhere")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        Artifact.open(folder)
        Artifact.open(folder)
    assert len(hashed) == 4


def test_processes_share_the_cache_file(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgellama.artifact import hash_cache\n"
        "for i in range(40): hash_cache.remember([f'{sys.argv[1]}-{i}'])"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=REPOSITORY) for n in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    found = hash_cache.remembered()
    assert len(found) == len(set(found)) >= 40
    assert [path.name for path in (tmp_path / "cache" / "edgellama").iterdir()] == [hash_cache.NAME]


def test_check_lists_every_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text("{}")
    status, out, _ = run_main(capfd, "check", str(folder))
    assert status == 0
    states = {line.split()[-1]: line[:10].strip() for line in out.splitlines()}
    names = ("manifest.json", "step1.mindir", "step4.mindir", "step16.mindir", "weights.safetensors")
    assert states == {**dict.fromkeys(names, "ok"), "config.json": "no hash"}

    flip(folder / "weights.safetensors")
    (folder / "step1.mindir").unlink()
    (folder / "step4.mindir").write_bytes(b"more than before")
    (folder / "step16.mindir").unlink()
    os.mkfifo(folder / "step16.mindir")
    (folder / "config.json").write_text("{")
    (folder / "note.txt").write_text("mine")
    status, out, err = run_main(capfd, "check", str(folder))
    assert status == 2 and "6 wrong" in err and "Traceback" not in err
    assert {line.split()[-1]: line[:10].strip() for line in out.splitlines()} == {
        "manifest.json": "ok",
        "step1.mindir": "missing",
        "step4.mindir": "wrong size",
        "step16.mindir": "not a file",
        "weights.safetensors": "damaged",
        "config.json": "damaged",
        "note.txt": "extra file",
    }


def test_check_needs_neither_numpy_nor_mindspore_lite(folder: Path) -> None:
    code = (
        "import sys\nfor name in ('numpy', 'mindspore_lite', 'tokenizers', 'jinja2'): sys.modules[name] = None\n"
        "from edgellama.__main__ import main\nsys.exit(main(['check', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["weights.safetensors", "step4.mindir", "tokenizer.json", "manifest.json"])
def test_links_out_of_the_folder_and_fifos_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    outside = tmp_path / "outside"
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("{}")
    path.symlink_to(outside)
    with pytest.raises(UserError, match="outside the artifact"):
        Artifact.open(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="a fifo; needed: a regular file"):
        Artifact.open(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"outside the artifact|a device"):
        Artifact.open(folder)
    path.unlink()
    shutil.copy(outside, folder / "inside")
    path.symlink_to("inside")
    Artifact.open(folder)  # a link within the folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": -1}, "format_version is -1; needed: 1 to 2"),
        ({"format_version": 0}, "format_version is 0; needed: 1 to 2"),
        ({"config": {"vocab_size": 51}}, r"logits.*float32 \[1, 51\]"),
        ({"config": {}}, "config.vocab_size is None"),
        ({"config": {"vocab_size": 50, "num_hidden_layers": 3}}, "config.num_hidden_layers is 3; needed: 2"),
        ({"config": {"vocab_size": 50, "head_dim": 5}}, "config.head_dim is 5; needed: 4"),
        ({"config": {"vocab_size": 50, "sliding_window": "all"}}, "config.sliding_window is 'all'"),
        ({"cache": {"dtype": "float32", "policy": "in_place", "layers": 3, "shape": [1, 2, 64, 4]}}, "caches"),
        ({"cache": {"dtype": "float16", "policy": "in_place", "layers": 2, "shape": [1, 2, 64, 4]}}, "float16"),
        ({"cache": {"dtype": "float32", "policy": "returned", "layers": 2, "shape": [1, 2, 64, 4]}}, "outputs is 1"),
        ({"weights": None}, "input embedding is unknown to this runtime"),
        ({"weights": {"file": "weights.safetensors", "sha256": "x", "bytes": 1}}, "needed: 64 hexadecimal digits"),
        ({"weights": {"file": "a\0b", "sha256": "0" * 64, "bytes": 1}}, "printable"),
        ({"eos_token_id": [1 << 40]}, "eos_token_id"),
        ({"eos_token_id": [1 << 70]}, "eos_token_id"),
    ],
)
def test_parts_of_a_manifest_that_contradict_each_other_are_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(folder, **changes)
    with pytest.raises(UserError, match=message):
        Artifact.open(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": ' * 100_000, "nested more than 64 levels"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 levels"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number has 5,000 characters"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"[]", "a JSON list; needed: an object"),
        (b"", "not valid JSON"),
        (b" " * (json_reader.LARGEST + 1), "at most 16,777,216 are read"),
    ],
)
def test_each_limit_of_the_json_reader_has_its_message(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(UserError, match=message):
        json_reader.read_object(tmp_path / "x.json", "Try again")


def test_json_within_the_limits_is_read_as_by_the_standard_library(tmp_path: Path) -> None:
    deep: object = "[{" * 100 + '"\\'
    for _ in range(63):
        deep = [deep]
    value = {"deep": deep, "n": 10**30, "x": [1.5e-300, -0.0, True, None], "t": '\U0001f600 é \\" }', "": {}}
    for ascii_only in (True, False):
        for start in ("", "\ufeff"):  # a byte order mark, as Windows writes it
            (tmp_path / "x.json").write_text(start + json.dumps(value, ensure_ascii=ascii_only), encoding="utf-8")
            assert json_reader.read_object(tmp_path / "x.json", "") == value


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_the_json_reader_reads_regular_files_only(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.json"
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero")}[kind]()
    with pytest.raises(UserError, match=f"a {kind}; needed: a regular file"):
        json_reader.read_object(path, "Try again")
