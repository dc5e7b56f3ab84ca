"""The import rules of exporter/README.md and runtime/README.md, checked by import-linter (contracts in setup.cfg)."""

from __future__ import annotations

import ast
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINT = Path(sysconfig.get_path("scripts")) / "lint-imports"


def test_the_contracts_are_kept(tmp_path: Path) -> None:
    subprocess.run([ROOT / "tests/support/link_package.sh", tmp_path], check=True)
    done = subprocess.run(
        [LINT, "--no-cache", ROOT / "setup.cfg"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_are_relative_within_a_package_and_absolute_across() -> None:
    wrong = []
    for folder in ("runtime", "exporter", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
                wrong += [f"{path}: {m}" for m in modules if m.split(".")[0] in ("runtime", "exporter", "kernels")]
    assert wrong == []


def test_no_public_class_name_is_used_twice() -> None:
    # Classes of these files are named after operators: the network asks each op set for the same names.
    named_after_operators = ("opsets/portable.py", "opsets/cpu.py", "opsets/ascend.py", "onnx_twin/evaluators.py")
    cells = {str(ROOT / "exporter" / name) for name in named_after_operators}
    places: dict[str, list[str]] = {}
    for folder in ("runtime", "exporter", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and str(path) not in cells:
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_folder_has_more_than_twenty_files() -> None:
    folders: dict[Path, int] = {}
    for folder in ("runtime", "exporter", "kernels"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".md", ".html", ".txt"):
                folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {str(f): n for f, n in folders.items() if n > 20 and not f.name.startswith("op_")} == {}
