"""The files that a user names: only files of the same kind are replaced, completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellama import output_file
from edgellama.__main__ import main
from edgellama.conversation import session_file
from edgellama.errors import UserError, explain_os_error, os_error_of
from support.child import REPOSITORY, run_cli

REPORT = {"schema_version": 1, "artifact": {}, "machine": {}}


def write(path: Path, value: object = REPORT) -> None:
    output_file.write_report(path, value)


def test_missing_empty_and_older_reports_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write(path)
    path.chmod(0o600)
    write(path, {**REPORT, "schema_version": 2})
    assert json.loads(path.read_text())["schema_version"] == 2
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("")
    write(path)
    assert json.loads(path.read_text()) == REPORT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["three years of work", "{}", '{"format_version": 1, "digest": ""}', "[" * 100_000])
def test_other_files_stay(content: str, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text(content)
    link = tmp_path / "link"
    link.symlink_to(path)
    for named in (path, link):
        with pytest.raises(UserError, match="exists and is not a report of this command, so it is not overwritten"):
            write(named)
    assert path.read_text() == content and link.is_symlink()


def test_the_target_of_a_link_is_replaced_and_devices_are_written(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("report.json")
    for _ in range(2):
        write(link)
    assert link.is_symlink() and json.loads((tmp_path / "report.json").read_text()) == REPORT
    write(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


def test_a_failure_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write(path)
    with (
        pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"),
        output_file.replaced(path, output_file.is_report, "a report") as file,
    ):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert json.loads(path.read_text()) == REPORT and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "is a folder"), ("no/x.json", "No such file"), ("n" * 256, "File name too long")],
)
def test_places_that_cannot_hold_a_file(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        output_file.check_report(tmp_path / name)


def test_a_session_does_not_overwrite_another_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="is not a saved session"):
        output_file.check(path, session_file.is_session, session_file.KIND)


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_each_error_of_the_system_is_one_line(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for error in (OSError(code, os.strerror(code)), OSError(code, os.strerror(code), "/some/file")):
        if isinstance(error, BrokenPipeError):
            continue

        def fail(*_: object, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr("edgellama.exporter.plan.command.describe", fail)
        assert main(["plan", "llama3-8b"]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and os.strerror(code) in line
        assert (error.filename or "") in line


def test_errors_that_libraries_wrap_are_found() -> None:
    def wrapped(inner: Exception, outer: Exception) -> OSError | None:
        try:
            try:
                raise inner
            except Exception:
                raise outer  # noqa: B904
        except Exception as error:
            return os_error_of(error)

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert wrapped(full, ValueError("Can't close the ZIP file")) is full
    assert wrapped(FileNotFoundError(errno.ENOENT, "No such file"), KeyError("a defect of ours")) is None
    found = os_error_of(RuntimeError("ofstream: write failed:\n No space left on device"))
    assert found is not None and "free some space" in explain_os_error(found)
    assert "\n" not in explain_os_error(found)


def test_standard_output_on_a_full_disk() -> None:
    command = [sys.executable, "-m", "edgellama", "plan", "llama3-8b", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device") and done.stderr.count("\n") == 1


def test_bench_refuses_before_it_measures(tmp_path: Path) -> None:
    path = tmp_path / "thesis.json"
    path.write_text("three years of work")
    done = run_cli("bench", str(tmp_path / "no-artifact"), "--json", str(path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not a report" in done.stderr and path.read_text() == "three years of work"


def test_numpy_s_message_of_a_full_disk_is_explained() -> None:
    message = explain_os_error(OSError("13464 requested and 3040 written"))
    assert "No space left on device" in message and "free some space" in message


def test_a_full_standard_error_is_no_traceback() -> None:
    command = [sys.executable, "-m", "edgellama", "plan", "nonsense"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stderr=full, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (2, b"")
