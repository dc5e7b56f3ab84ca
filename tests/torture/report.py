"""Counts outcomes, and prints them: one table, and how to repeat each bad case."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.case import FaultClass
from torture.outcomes import BAD, KINDS, Outcome

LONGEST = 1000  # characters of a detail that are printed
MOST_SHOWN = 10  # bad cases of a class that are printed; --json has all


@dataclass
class Counted:
    """The results of one class.

    Attributes:
        wanted: the number of its cases.
        counts: how many ended with each kind.
        bad: number and outcome of each bad case; number -1: the class itself failed.
        seconds: from its start to its end.
    """

    wanted: int
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, Outcome]] = field(default_factory=list)
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def tried(self) -> int:
        """The number of cases that have ended."""
        return sum(self.counts.values())

    def add(self, number: int, outcome: Outcome) -> None:
        """Count an outcome."""
        self.counts[outcome.kind] += number >= 0
        if outcome.kind in BAD:
            self.bad.append((number, outcome))

    def end(self) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self.began


def print_list(classes: Iterable[FaultClass]) -> None:
    """Print what each class injects."""
    for fault in classes:
        print(f"{fault.name} ({fault.full} cases, {fault.quick} in the quick form): {fault.what}")
        if fault.harmless:
            print(f"    harmless: {fault.harmless}")


def print_table(counted: Mapping[str, Counted]) -> None:
    """Print one row for each class, and their sum."""
    rows = [
        [name, str(x.tried), *(str(x.counts[kind]) for kind in KINDS), f"{x.seconds:.0f}"]
        for name, x in counted.items()
    ]
    total = [
        str(sum(x.tried for x in counted.values())),
        *(str(sum(x.counts[k] for x in counted.values())) for k in KINDS),
    ]
    rows.append(["all", *total, ""])
    head = ["class", "tried", *KINDS, "s"]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        )


def print_bad(counted: Mapping[str, Counted], seed: int, work: Path) -> None:
    """Print how to repeat each bad case, and where its files are."""
    for name, result in counted.items():
        for number, outcome in result.bad[:MOST_SHOWN]:
            print(f"\n{outcome.kind}: {name} {number}, files in {work / name / f'case-{number}'}")
            print(f"  again: python tests/torture --only {name} --seed {seed} --case {number}")
            detail = outcome.detail.strip()
            short = detail if len(detail) <= LONGEST else f"{detail[:200]} ... {detail[-LONGEST:]}"
            print("  " + short.replace("\n", "\n  "))
        if len(result.bad) > MOST_SHOWN:
            print(f"\n{name}: {len(result.bad) - MOST_SHOWN} more bad cases; --json FILE lists them")


def write_json(path: Path, counted: Mapping[str, Counted], seed: int, form: str) -> None:
    """Write the counts and the bad cases."""
    classes: dict[str, Any] = {
        name: {
            "tried": result.tried,
            **{kind: result.counts[kind] for kind in KINDS},
            "seconds": round(result.seconds, 1),
            "bad": [[number, *outcome] for number, outcome in result.bad],
        }
        for name, result in counted.items()
    }
    path.write_text(json.dumps({"seed": seed, "form": form, "classes": classes}, indent=1) + "\n")
