"""The folder that an export writes: what it may replace, locks, and kills at every moment. `make torture` has races."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellama.errors import UserError
from edgellama.exporter.writing import atomic_folder, folder_lock, replaceable
from support.child import REPOSITORY, run_cli, run_support
from support.folder_writers import content, write_folder


def refused(out: Path, *sources: Path) -> str:
    """Returns the message of the refusal to write `out`; nothing on the disk may have changed."""
    with pytest.raises(UserError) as found, atomic_folder.claimed(out, *sources):
        pass
    return str(found.value)


def users_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("three years of work")
    return path


FOREIGN: dict[str, Callable[[Path], Path]] = {
    "a folder": users_folder,
    "a folder of one hidden file": lambda path: (path.mkdir(), (path / ".git").write_text(""), path)[2],
    "a folder with another manifest": lambda path: (
        path.mkdir(),
        (path / "manifest.json").write_text('{"name": "app", "format_version": 3}'),
        path,
    )[2],
    "a folder with a manifest that is no JSON": lambda path: (
        path.mkdir(),
        (path / "manifest.json").write_text("[" * 100_000),
        path,
    )[2],
    "a file": lambda path: (path.write_text("x"), path)[1],
    "a pipe": lambda path: (os.mkfifo(path), path)[1],
    "a link to a folder": lambda path: (users_folder(path.with_name("t")), path.symlink_to("t"), path)[2],
    "a link to a file": lambda path: (path.with_name("t").write_text("x"), path.symlink_to("t"), path)[2],
    "a link to itself": lambda path: (path.symlink_to(path), path)[1],
    "a link to a link to a folder": lambda path: (
        users_folder(path.with_name("t")),
        path.with_name("l").symlink_to("t"),
        path.symlink_to("l"),
        path,
    )[3],
    "the root": lambda path: Path("/"),
    "a device": lambda path: Path("/dev/null"),
    "a mount point": lambda path: Path("/proc"),
}


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mode) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_no_export_wrote_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    out = FOREIGN[kind](tmp_path / "x")
    before = listing(tmp_path)
    message = refused(out)
    assert str(out) in message and "Choose" in message and "\n" not in message
    assert listing(tmp_path) == before


@pytest.mark.parametrize("out", [".", "", "..", "./", "../..", "../here", "link"])
def test_the_current_folder_and_those_around_it_are_refused(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    Path("link").symlink_to(here)
    assert "the current folder" in refused(Path(out))


def test_an_artifact_around_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "x", "old")
    monkeypatch.chdir(tmp_path / "x/graphs")
    assert "the current folder" in refused(Path(".."))
    assert content(tmp_path / "x") == "old"


def test_the_source_and_what_contains_it_are_refused(tmp_path: Path) -> None:
    """Also if the folder has a manifest of ours, and if the source is a folder of links, as in a hub's cache."""
    out = tmp_path / "x"
    write_folder(out, "old")
    (out / "model.gguf").write_text("weights")
    inner = users_folder(out / "checkpoint")
    links = tmp_path / "links"
    links.mkdir()
    (links / "model.safetensors").symlink_to(inner / "thesis.txt")
    (tmp_path / "alias").symlink_to(out)
    for source in (out, inner, out / "model.gguf", links, tmp_path / "alias"):
        for named in (out, tmp_path / "alias"):
            assert "the source of this command" in refused(named, source)
    with atomic_folder.claimed(inner / "inside", inner) as claim, claim.written() as partial:
        (partial / "file").write_text("x")  # a new folder inside the source is fine
    assert (inner / "thesis.txt").exists() and (inner / "inside/file").exists()


def test_missing_empty_and_older_folders_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "a/b/x"
    write_folder(out, "first")
    assert content(out) == "first"
    write_folder(out, "second")
    assert content(out) == "second"
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace("second", "an edited digest"))
    write_folder(out, "third")
    empty = tmp_path / "empty"
    empty.mkdir()
    write_folder(empty, "fourth")
    assert (content(out), content(empty)) == ("third", "fourth")
    assert [path.name for path in out.parent.iterdir()] == ["x"]
    assert out.stat().st_mode & 0o777 == empty.parent.joinpath("a").stat().st_mode & 0o777  # not only for its owner


def test_links_stay_and_their_target_is_replaced(tmp_path: Path) -> None:
    for number, prepare in enumerate((Path.mkdir, lambda path: write_folder(path, "old"), lambda path: None)):
        disk = tmp_path / f"disk{number}"
        disk.mkdir()
        prepare(disk / "x")
        link = tmp_path / f"link{number}"
        link.symlink_to(disk / "x")
        write_folder(link, "new")
        assert link.is_symlink() and content(disk / "x") == "new"
        assert [path.name for path in disk.iterdir()] == ["x"]


def test_files_that_a_user_has_added_to_an_artifact_stay(tmp_path: Path) -> None:
    out = tmp_path / "x"
    write_folder(out, "old")
    users_folder(out / "notes")
    (out / "README.md").write_text("mine")
    (out / "graphs/1.png").write_text("drawing")
    (out / "link").symlink_to("README.md")
    (out / "graphs/512.mindir").write_text("of the old artifact")
    (out / "listed.bin").write_text("of the old artifact")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["graphs"] = [{"file": "graphs/512.mindir", "data": [{"file": "listed.bin"}]}]
    (out / "manifest.json").write_text(json.dumps(manifest))
    write_folder(out, "new")
    assert content(out) == "new"
    assert (out / "README.md").read_text() == "mine" and (out / "link").is_symlink()
    assert (out / "notes/thesis.txt").exists() and (out / "graphs/1.png").exists()
    assert not (out / "graphs/512.mindir").exists() and not (out / "listed.bin").exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"^/.*new/x could not be written: No space left on device\. The disk of"),
        atomic_folder.claimed(tmp_path / "new/x") as claim,
        claim.written() as partial,
    ):
        (partial / "graphs").mkdir()
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_was_put_there_during_the_export_stays(tmp_path: Path) -> None:
    out = tmp_path / "x"
    with pytest.raises(UserError, match="not empty"), atomic_folder.claimed(out) as claim, claim.written() as partial:
        (partial / "file").write_text("new")
        users_folder(out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    out = tmp_path / ("n" * 255)
    write_folder(out, "old")
    write_folder(out, "new")
    assert content(out) == "new" and list(tmp_path.iterdir()) == [out]
    with pytest.raises(OSError, match="File name too long"):
        write_folder(tmp_path / ("n" * 256), "new")


def test_folders_of_other_names_and_of_living_processes_are_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "x"
    foreign = [users_folder(tmp_path / name) for name in (".x.partial", ".x.old", ".x.edgellama-mine", "x.partial")]
    living, dead = (tmp_path / f".x.edgellama-{digit * 16}.partial" for digit in "ab")
    users_folder(living), users_folder(dead)
    with folder_lock.locked_folder(living):
        write_folder(out, "new")
    assert all(path.is_dir() for path in (*foreign, living)) and not dead.exists()


def test_the_second_writer_is_told_at_once(tmp_path: Path) -> None:
    out = tmp_path / "x"
    (tmp_path / "alias").symlink_to("x")
    with atomic_folder.claimed(out):
        for name in ("x", "alias"):
            command = "import sys, pathlib; from edgellama.exporter.writing import atomic_folder\n"
            command += "with atomic_folder.claimed(pathlib.Path(sys.argv[1])): pass"
            second = subprocess.run(
                [sys.executable, "-c", command, str(tmp_path / name)], capture_output=True, text=True, cwd=REPOSITORY
            )
            assert f"another command (process {os.getpid()}) is writing" in second.stderr


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("before", [True, False], ids=["old artifact", "new"])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(
    exchange: bool, before: bool, tmp_path: Path
) -> None:
    done = run_support("folder_writers", str(tmp_path), json.dumps(exchange), json.dumps(before))
    results = json.loads(done.stdout)
    assert len(results) > 10
    old = "old" if before else None
    for found, recovered, after, names in results:
        assert found in ((old, "new") if exchange else (old, "new", None))
        assert recovered in (old, "new")
        assert (after, names) == ("next", ["x"])
    assert {found for found, *_ in results} >= {old, "new"}


def test_export_refuses_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes before the model is looked for: the cache stays empty."""
    out = users_folder(tmp_path / "x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = run_cli("export", "smollm2-135m-instruct", "--out", str(out))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "it contains thesis.txt" in done.stderr and not (tmp_path / "cache").exists()


def test_mount_points_are_read_with_their_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(rb"36 35 98:0 /mnt1 /mnt/my\040disk rw,noatime master:1 - ext3 /dev/root rw" + b"\n")
    monkeypatch.setattr(replaceable, "MOUNTS", table)
    assert replaceable.mount_points() == {Path("/mnt/my disk")}
