"""The framework itself: each kind of end is recognised, counted, and can be repeated."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from edgellama.errors import UserError
from support.child import run_child
from torture.case import FaultClass, outcomes
from torture.forked import in_child
from torture.outcomes import Outcome, of_command, reported

CLEAR = "a.json: x is 3; needed: 4. Export again"


def raising(error: BaseException) -> Outcome:
    raise error


def test_each_end_of_a_child_has_its_kind() -> None:
    ends = {
        "clear": lambda: raising(UserError(CLEAR)),
        "unclear": lambda: raising(UserError("a.json is wrong")),
        "traceback": lambda: raising(KeyError("x")),
        "crash": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hang": lambda: time.sleep(60),
        "silent": lambda: Outcome("silent", "differs"),
        "harmless": lambda: Outcome("harmless"),
    }
    found = {kind: in_child(end, ["a.json"], seconds=1.0 if kind == "hang" else 20.0) for kind, end in ends.items()}
    assert {kind: outcome.kind for kind, outcome in found.items()} == {kind: kind for kind in ends}
    assert found["clear"].detail == CLEAR and "KeyError" in found["traceback"].detail
    assert in_child(lambda: os._exit(0)).kind == "crash"  # it ended without a result


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (CLEAR, "clear"),
        ("b.json: x is 3; needed: 4. Export again", "unclear"),  # another file
        ("a.json: x is 3", "unclear"),  # no remedy
        ("a.json: x is 3\nExport again", "unclear"),
        ("a.json: x is \x00. Export again", "unclear"),
        (CLEAR + "." * 2000, "unclear"),
    ],
)
def test_a_clear_message_is_one_line_with_a_name_and_a_remedy(text: str, kind: str) -> None:
    assert reported(text, ["a.json"]).kind == kind


@pytest.mark.parametrize(
    ("status", "stderr", "kind"),
    [
        (2, f"Loading\nerror: {CLEAR}\n", "clear"),
        (1, f"error: {CLEAR}\n", "unclear"),
        (2, f"error: {CLEAR}\nerror: {CLEAR}\n", "unclear"),
        (2, "usage: x", "unclear"),
        (1, 'Traceback (most recent call last):\n  File "x"\nKeyError: 1\n', "traceback"),
        (0, "Traceback (most recent call last):\n", "traceback"),
        (-11, "", "crash"),
        (134, "aborted", "crash"),
        (0, "", None),
    ],
)
def test_each_end_of_a_command_has_its_kind(status: int, stderr: str, kind: str | None) -> None:
    found = of_command(status, stderr, ["a.json"])
    assert (None if found is None else found.kind) == kind


def test_files_of_bad_cases_are_kept_and_a_case_can_be_repeated(tmp_path: Path) -> None:
    def run(cases, shared):  # type: ignore[no-untyped-def]
        for case in cases:
            (case.folder / "x").write_text(str(case.rng.random()))
            yield Outcome("silent" if case.number == 1 else "harmless")

    fault = FaultClass("x", "", "", 3, 2, run)
    found = list(outcomes(fault, 5, range(3), tmp_path / "a"))
    assert [(number, outcome.kind) for number, outcome in found] == [(0, "harmless"), (1, "silent"), (2, "harmless")]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["case-1"]
    list(outcomes(fault, 5, range(1, 2), tmp_path / "b"))
    assert (tmp_path / "a/case-1/x").read_text() == (tmp_path / "b/case-1/x").read_text()


def test_the_command_runs_a_class_and_reports_it(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    only = ["--only", "weight-headers", "--count", "3"]
    done = run_child("tests/torture", *only, "--json", str(report), "--work", str(tmp_path / "work"))
    counts = json.loads(report.read_text())["classes"]["weight-headers"]
    assert counts["tried"] == 3 and counts["clear"] + counts["harmless"] == 3 and counts["bad"] == []
    assert done.stdout.splitlines()[1].split()[:2] == ["weight-headers", "3"]
    assert "no class 'x'" in run_child("tests/torture", "--only", "x", status=1).stderr
