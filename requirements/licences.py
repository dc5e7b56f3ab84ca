"""Writes LICENSES.md: the licence of every locked package, as its metadata state it. Part of `make lock`.

A package that only another Python needs is not installed here; pip downloads its file, and checks the hash.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

from lock import LOCKS, PYTHONS, Package, read_lock

PAGE = Path(__file__).parent / "LICENSES.md"
# What a table column says. A package is in the column of each lock file that lists it, or includes a file that does.
COLUMNS = {"runtime": "runtime", "serve": "endpoint", "export": "exporter", "test": "tests and tools"}
# Packages whose metadata state none: the licence of the file LICENSE in their repository.
KNOWN = {"atheris": "Apache-2.0"}
INTRODUCTION = """# Licences of the dependencies

Written by `make lock` from the metadata of the packages; a test compares it with the installed ones. The columns say
which part of the project needs a package: the [lock files](README.md) `runtime.txt`, `serve.txt`, `export.txt` and
`test.txt`. `build.txt` (compiles the kernels) counts as runtime. `edgellama.lite` installs MindSpore Lite (Apache-2.0).
The chat page contains markdown-it 15.0.3 (MIT, with parts under MIT and BSD-2-Clause) and highlight.js 11.12.0
(BSD-3-Clause); [their licences](../runtime/serve/page/LICENSES.txt) are beside them.

"""


def licence_of(information: Message | metadata.PackageMetadata) -> str:
    """Returns the licence that a package's metadata state: License-Expression, else its classifiers, else License."""
    classifiers = [text.split(" :: ")[-1] for text in information.get_all("Classifier") or () if "License ::" in text]
    stated = (information.get("License") or "").strip()
    if expression := information.get("License-Expression"):
        return expression
    if named := [text for text in classifiers if text != "OSI Approved"]:
        return " AND ".join(named)
    first = stated.splitlines()[0].strip() if stated else ""
    return first[:60] or KNOWN.get(str(information["Name"]), "not stated")


def download(package: Package) -> Message:
    """Returns the metadata of a package's file, for the oldest Python that needs it."""
    python, machine = min(package.environments, key=lambda pair: (PYTHONS.index(pair[0]), pair[1] != "x86_64"))
    with tempfile.TemporaryDirectory() as name:
        listed = Path(name, "package.txt")
        listed.write_text(re.sub(r" ;[^\\\n]*", " ", package.lines()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", name]
        command += ["--no-deps", "--only-binary=:all:", "--python-version", python, "--require-hashes"]
        platforms = [f"--platform=manylinux{tag}_{machine}" for tag in ("_2_31", "_2_28", "_2_17", "2014")]
        subprocess.run([*command, *platforms, "-r", str(listed)], check=True)
        (wheel,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (entry for entry in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry))
            return HeaderParser().parsestr(archive.read(member).decode("utf-8"))


def used_by() -> dict[str, set[str]]:
    """Returns the COLUMNS of each locked package."""
    found: dict[str, set[str]] = {}

    def add(name: str, column: str) -> None:
        lock = next(lock for lock in LOCKS if lock.name == name)
        for package in read_lock(lock.path.read_text(encoding="utf-8")):
            found.setdefault(package.name, set()).add(column)
        for include in lock.includes:
            add(include, column)

    for lock in LOCKS:
        add(lock.name, lock.name if lock.name in COLUMNS else "runtime" if lock.name == "build" else "test")
    found["torch"] = {"test"}
    return found


def main() -> None:
    packages: dict[str, Package] = {}
    for lock in LOCKS:
        for package in read_lock(lock.path.read_text(encoding="utf-8")):
            packages[package.name] = package  # of several versions, the last one
    rows = []
    for name, columns in sorted(used_by().items()):
        try:
            information: Message | metadata.PackageMetadata = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            information = download(packages[name])
        marks = ["x" if column in columns else "" for column in COLUMNS]
        rows.append(re.sub(r"\|  (?=\|)", "| ", f"| {name} | {licence_of(information)} | {' | '.join(marks)} |\n"))
    head = f"| package | licence | {' | '.join(COLUMNS.values())} |\n| {' | '.join(['---'] * (2 + len(COLUMNS)))} |\n"
    PAGE.write_text(INTRODUCTION + head + "".join(rows), encoding="utf-8")
    print(f"{PAGE.name}: {len(rows)} packages")


if __name__ == "__main__":
    main()
