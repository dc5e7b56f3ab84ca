"""That `make mutants` works, on two mutants; that its tables name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mutants.equivalent import EQUIVALENT
from mutants.mutations import Mutant, make, places
from mutants.parts import LEFT_OUT, PARTS, ROOT

MODULES = [module for modules in PARTS.values() for module in modules]
SOURCE = '''\
from __future__ import annotations


def f(a: int | None, b: list[int]) -> int:
    """Text 1."""
    if a == 3 or a != "x":
        raise ValueError(f"{a + 1} is wrong")
    b.append(2)
    for x, y in zip(b, b, strict=True):
        a -= x
    return a
'''


def test_every_name_in_the_tables_exists() -> None:
    files = {ROOT / "tests" / name for module in MODULES for name in module.tests}
    assert all((ROOT / module.path).is_file() for module in MODULES) and all(path.is_file() for path in files)
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert [name for name in LEFT_OUT if f"def {name}(" not in text] == []
    paths = {module.path for module in MODULES}
    for known in EQUIVALENT:
        lines = [line.strip() for line in (ROOT / known.path).read_text(encoding="utf-8").splitlines()]
        assert known.path in paths and known.line in lines, known


def test_mutants_change_behaviour_only() -> None:
    """Nothing in annotations, messages, docstrings or `strict`; a text is compared with == and != only."""
    made = [make("m.py", SOURCE, place) for place in places(SOURCE)]
    mutants = [mutant for mutant in made if isinstance(mutant, Mutant)]
    old = [line for mutant in mutants for line in mutant.lines()[0]]
    changed = {re.sub(r"\s+", " ", line) for mutant in mutants for line in mutant.lines()[1]}
    assert not any("def f" in line or ("strict" in line and "[]" not in line) for line in changed)
    assert not any("a - 1" in line or "Text" in line for line in changed)
    wanted = {'if a <= 3 or a != "x":', 'if a == 4 or a != "x":', 'if a == 3 and a != "x":', 'if a == 3 or a == "x":'}
    assert wanted | {"pass", "b.append( 3)", "for x, y in []:"} <= {*changed, *old} and wanted <= changed
    assert not any('a < "x"' in line or 'a >= "x"' in line for line in changed)


def test_the_program_runs_two_mutants(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/mutants"), "--part", "mindir", "--module", "graph.py", "--sample", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr  # 1: one of the two survived
    row = re.search(r"exporter/mindir/graph.py +2 +(\d) +(\d) +(\d)", done.stdout)
    assert row is not None and int(row[1]) + int(row[3]) == 2
    assert "seed 0" in done.stdout


def test_an_unknown_part_is_named() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tests/mutants"), "--part", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "no part 'x'; there are decode, engine" in done.stderr
