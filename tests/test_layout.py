"""The rules for the files below tests/: shared code is in tests/support, and is defined once."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))
FOLDERS = {"support", "exporter", "runtime", "serve", "kernels", "ascend", "end_to_end", "data"}
PROGRAMS = {"peers", "torture", "mutants", "fuzz"}  # each is a folder of a program that make runs, with its tests


def modules_imported_by(source: str) -> set[str]:
    """Returns every name in an import statement of `source`, also of the code in its strings, split at the dots."""
    tree = ast.parse(source)
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(part for name in node.names for part in name.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            found.update([*(node.module or "").split("."), *(name.name for name in node.names)])
    for text in strings:
        found.update(line.split()[1] for line in text.split("\n") if line.startswith(("from test_", "import test_")))
    return found


@pytest.mark.parametrize(
    "source", ["import test_a", "from test_a import b", "from runtime import test_a", "code = 'from test_a import b'"]
)
def test_every_form_of_import_is_found(source: str) -> None:
    assert "test_a" in modules_imported_by(source)


def test_no_module_imports_a_test_module() -> None:
    tests = {path.stem for path in FILES if path.stem.startswith("test_")}
    found = {
        str(path.relative_to(TESTS)): sorted(imported)
        for path in FILES
        if (imported := modules_imported_by(path.read_text(encoding="utf-8")) & tests)
    }
    assert found == {}, "move what is shared to tests/support"


def test_there_is_one_tiny_artifact() -> None:
    defined = [
        (node.name, str(path.relative_to(TESTS)))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name in ("tiny_artifact", "export_tiny")
    ]
    assert sorted(defined) == [("export_tiny", "support/exported.py"), ("tiny_artifact", "conftest.py")]


def test_files_are_in_their_folders() -> None:
    """At the top are tests of the whole repository; helpers are in support, and nowhere else."""
    assert {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"} == FOLDERS | PROGRAMS
    misplaced = [
        str(path.relative_to(TESTS))
        for path in FILES
        if path.relative_to(TESTS).parts[0] not in PROGRAMS | {"support"}
        and path.name != "conftest.py"
        and not path.name.startswith("test_")
    ]
    assert misplaced == []
    assert not list((TESTS / "support").glob("test_*.py"))


def test_support_defines_each_public_function_once() -> None:
    """Two helpers of one name in different modules are usually one helper that was copied."""
    defined = Counter(
        node.name
        for path in (TESTS / "support").glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    )
    allowed = {"main", "load", "expected"}  # of different things: a program, a model, a result
    assert {name for name, count in defined.items() if count > 1} <= allowed
