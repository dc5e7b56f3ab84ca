"""The table of chips is consistent, and is the only place that lists SoC versions and buffer sizes."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellama.exporter.targets import TARGETS
from edgellama.kernels.ascend import standin, standin_library
from edgellama.kernels.ascend.chips import CHIPS, INSTRUCTIONS, OPERATORS, Chip, chip_of_soc

ROOT = Path(__file__).parents[2]
TABLE = "kernels/ascend/chips.py"
SOC = re.compile(r"(?:310[BP]|910B)\d")
PACKAGES, SUFFIXES = ("runtime", "exporter", "kernels"), (".py", ".h", ".cpp", ".sh", ".json")
CHIP = pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)


@CHIP
def test_names_refer_to_what_the_table_defines(chip: Chip) -> None:
    assert chip.missing_operators <= OPERATORS.keys()
    assert chip.missing_instructions <= INSTRUCTIONS.keys()
    assert all(re.fullmatch(rf"{chip.name.replace(' ', '')}\d[\w-]*", soc) for soc in chip.soc_versions)
    assert (chip.cube_cores == chip.vector_cores) is not chip.split_cores
    assert {board.soc for board in chip.boards} <= {None, *chip.soc_versions}
    assert all(0 < board.available < board.memory and board.bandwidth and board.flops for board in chip.boards)


def test_a_soc_version_belongs_to_one_chip() -> None:
    versions = [soc for chip in CHIPS.values() for soc in chip.soc_versions]
    assert len(set(versions)) == len(versions)
    assert [chip_of_soc(soc) for soc in versions] == [chip for chip in CHIPS.values() for _ in chip.soc_versions]


def test_every_chip_is_a_target() -> None:
    assert [target for target, made in TARGETS.items() if made.chip is not None] == list(CHIPS)


@CHIP
def test_the_stand_in_has_the_table_s_sizes(chip: Chip) -> None:
    buffers = chip.buffers
    assert standin.limits(chip.target) == [
        buffers.unified - chip.reserved,
        buffers.l1 - chip.reserved,
        *(buffers.l0a, buffers.l0b, buffers.l0c, chip.cube_cores, chip.vector_cores, chip.arch),
    ]


def test_the_stand_in_is_given_every_fact_that_it_asks_for() -> None:
    header = (ROOT / "kernels/ascend/standin/standin/chip.h").read_text()
    body = re.sub(r"//.*", "", header[header.index("struct ChipSpec {") : header.index("};")])
    lines = re.findall(r"(?:int|bool|char\*|size_t) ([\w, ]+);", body)
    declared = [name for line in lines for name in line.split(", ")]
    for target in CHIPS:
        assert sorted(re.findall(r"chip\.(\w+) =", standin_library.chip_table(target))) == sorted(declared)


def strings(path: Path) -> Iterator[str]:
    """Returns the strings of a Python file without docstrings, or another file without C++ comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield re.sub(r"//.*", "", text)
        return
    tree = ast.parse(text)
    docstrings = {
        id(first.value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        for first in node.body[:1]
        if isinstance(first, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_no_other_file_lists_soc_versions() -> None:
    """The exceptions are documentation: pages (.md) and docstrings, which show examples."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in SUFFIXES]
    found = {str(path.relative_to(ROOT)) for path in files if any(map(SOC.search, strings(path)))}
    assert len(files) > 150 and found == {TABLE}


def test_the_table_imports_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / TABLE).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in modules} <= sys.stdlib_module_names
