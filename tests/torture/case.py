"""A fault class, and its cases: each has its own random generator and its own folder."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torture.outcomes import BAD, Outcome


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        number: from 0.
        rng: seeded with the seed of the run, the class and the number, so that a case can be repeated alone.
        folder: an empty folder. It is deleted after the case, and kept if the outcome is bad.
    """

    number: int
    rng: random.Random
    folder: Path


@dataclass(frozen=True)
class FaultClass:
    """A class of faults.

    Attributes:
        name: for --only and the table.
        what: one line, for --list: what is injected, and into what.
        harmless: the rule that decides that a case without an error is harmless; "" if there is no such case.
        full, quick: the number of cases of each form.
        run: makes and runs cases. It gets an iterator over the cases and a folder for files that they share, and
            yields one outcome per case, in the order of the cases. Imports that take long belong inside it.
    """

    name: str
    what: str
    harmless: str
    full: int
    quick: int
    run: Callable[[Iterator[Case], Path], Iterator[Outcome]]


def numbered(seed: int, name: str, numbers: range, work: Path) -> Iterator[Case]:
    """Yield the cases with these numbers, each with its folder below `work`."""
    for number in numbers:
        folder = work / f"case-{number}"
        folder.mkdir(parents=True)
        yield Case(number, random.Random(f"{seed}/{name}/{number}"), folder)


def outcomes(fault: FaultClass, seed: int, numbers: range, work: Path) -> Iterator[tuple[int, Outcome]]:
    """Run cases of a class. Yields number and outcome, and deletes the folders of the good ones."""
    _remove(work)  # of an earlier run in the same folder
    shared = work / "shared"
    shared.mkdir(parents=True)
    found = fault.run(numbered(seed, fault.name, numbers, work), shared)
    for number, outcome in zip(numbers, found, strict=True):
        if outcome.kind not in BAD:
            _remove(work / f"case-{number}")
        yield number, outcome
    _remove(shared)


def _remove(folder: Path) -> None:
    """Delete a folder, also if a case has made a part of it read-only."""
    if folder.exists():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
