"""Looks for known vulnerabilities of the locked packages with pip-audit: `make audit`.

A registry that has no vulnerability records answers "not found" for every package, and pip-audit then reports nothing.
So a package that is known to be vulnerable is looked up first. If the answer lacks it, nothing counts as checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lock import LOCKS, read_lock, torch_pin

CONTROL = "jinja2==2.10"  # CVE-2019-10906: a template escapes from the sandbox
CONNECT_SECONDS, LIMIT_SECONDS = 10, 240


class NotCheckedError(Exception):
    """pip-audit gave no answer."""


def run(file: Path, options: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what pip-audit says about each package of `file`: its name, version, and `vulns` or `skip_reason`.

    Args:
        file: a requirements file whose packages are pinned.
        options: further options of pip-audit.

    Raises:
        NotCheckedError: the database did not answer, or not in time.
    """
    command = [sys.executable, "-m", "pip_audit", "-r", str(file), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", str(CONNECT_SECONDS), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotCheckedError(f"no answer within {LIMIT_SECONDS} seconds") from error
    try:
        return json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise NotCheckedError((done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1][:200]) from error


def check_database(folder: Path, options: Sequence[str]) -> None:
    """Raises NotCheckedError if the database does not know the vulnerability of CONTROL."""
    control = folder / "control.txt"
    control.write_text(f"{CONTROL}\n", encoding="utf-8")
    (answer,) = run(control, options)
    if not answer.get("vulns"):
        raise NotCheckedError(answer.get("skip_reason") or f"{CONTROL}, which is vulnerable, is not in it")


def all_pins() -> str:
    """Returns the pin of every locked package, and of torch, as a requirements file without hashes."""
    packages = [package for lock in LOCKS for package in read_lock(lock.path.read_text(encoding="utf-8"))]
    lines = {package.lines().partition(" \\\n")[0] for package in packages}
    return "".join(f"{line}\n" for line in sorted({*lines, torch_pin()}))


def main(options: Sequence[str] = ()) -> int:
    """Prints the result and returns the exit status: 1 if a locked package has a known vulnerability."""
    with tempfile.TemporaryDirectory() as name:
        pins = Path(name, "pins.txt")
        pins.write_text(all_pins(), encoding="utf-8")
        try:
            check_database(Path(name), options)
            answers = run(pins, options)
        except NotCheckedError as error:
            print(f"not checked: no vulnerability database is reachable ({error})")
            return 0
    skipped = [answer for answer in answers if "skip_reason" in answer]
    findings = [(answer, found) for answer in answers for found in answer.get("vulns", ())]
    print(f"checked: {len(answers) - len(skipped)} locked packages; known vulnerabilities: {len(findings)}")
    for answer, found in findings:
        remedy = f"fixed in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "no version fixes it"
        print(f"{answer['name']} {answer['version']}: {found['id']}; {remedy}")
    for answer in skipped:
        print(f"not checked: {answer['name']} ({answer['skip_reason']})")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
